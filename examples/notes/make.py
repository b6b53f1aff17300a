"""Writes train.csv and test.csv: invented notes of three hospitals, to try things with.

Each site writes in its own manner and sees its own mix of cases, as real ones do. Nothing here was
ever said by anybody.

python examples/notes/make.py
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

COMPLAINTS = {
    "urgent": (
        "chest pain spreading to the left arm",
        "sudden weakness on one side of the body",
        "cannot catch her breath since this morning",
        "heavy bleeding that does not stop",
        "fainted twice and is confused",
        "severe allergic swelling of the face",
        "high fever with a stiff neck",
        "slurred speech since an hour",
        "crushing pressure on the chest",
        "seizure lasting four minutes",
    ),
    "soon": (
        "fever for three days and a cough",
        "ankle swollen after a fall",
        "pain when passing water",
        "a rash that is slowly spreading",
        "ear pain and a sore throat",
        "vomiting since yesterday evening",
        "cut on the hand that may need stitches",
        "back pain going down the leg",
        "wheezing at night, worse this week",
        "a swollen and painful knee",
    ),
    "routine": (
        "wants a repeat prescription",
        "asks for a vaccination before travelling",
        "yearly check of blood pressure",
        "needs a certificate for sports",
        "follow-up after the removal of stitches",
        "questions about results of a blood test",
        "mild hay fever as every spring",
        "advice on losing weight",
        "renewal of glasses, no complaints",
        "routine check of a healed fracture",
    ),
}
WHO = (
    "man, 71",
    "woman, 64",
    "woman, 38",
    "man, 45",
    "child, 6",
    "girl, 15",
    "man, 29",
    "woman, 82",
)
MANNERS = {
    "north": ("{who}: {what}.", "{what} ({who})", "Pt {who}. C/o {what}."),
    "south": ("Dear colleague, this patient ({who}) reports {what}.", "Seen today: {who}; {what}."),
    "west": ("{what}", "{who} - {what} - please advise", "ref: {what}, {who}"),
}
MIX = {  # rows of 100 by site
    "north": {"urgent": 50, "soon": 30, "routine": 20},
    "south": {"urgent": 20, "soon": 35, "routine": 45},
    "west": {"urgent": 25, "soon": 45, "routine": 30},
}
ROWS = {"north": 160, "south": 120, "west": 80}
TEST = 30
"""Test rows of each site; three complaints in ten are in no training row."""
KNOWN = 7
"""Complaints of each label that training rows have."""


def draw(count: int, *about: object) -> int:
    """A number below ``count``, the same in every run."""
    digest = hashlib.sha256("/".join(map(str, about)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def row(site: str, number: int, known: int) -> dict[str, str]:
    """One note, with its label and its site, about one of the first ``known`` complaints."""
    labels = [label for label, share in MIX[site].items() for _ in range(share)]
    label = labels[draw(100, site, number, "label")]
    what = COMPLAINTS[label][draw(known, site, number, "what")]
    who = WHO[draw(len(WHO), site, number, "who")]
    manner = MANNERS[site][draw(len(MANNERS[site]), site, number, "manner")]
    return {"text": manner.format(who=who, what=what), "label": label, "site": site}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label", "site"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(folder: Path = Path(__file__).parent) -> None:
    write(folder / "train.csv", [row(s, i, KNOWN) for s, n in ROWS.items() for i in range(n)])
    write(folder / "test.csv", [row(s, 1000 + i, 10) for s in ROWS for i in range(TEST)])


if __name__ == "__main__":
    main()
