"""`make results`: run what is missing of every study; write docs/RESULTS.md, and a page of each.

The page begins with a summary written by hand; everything below ``MARK`` is made anew each time
from the records of the runs, which stay in compare/. These, and the pages of the studies in
docs/results, are not in the repository: pages are made of records, and records of runs.

    python -m benchmarks.results              all studies, hours; goes on where it stopped
    python -m benchmarks.results main map     these only
    python -m benchmarks.results --write      only write, from what has run
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from forefed.compare import compare
from forefed.compare.study import Study, check_study, study_of_file
from forefed.core.errors import UserError
from forefed.report.comparison import STUDY
from forefed.report.words import plural

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "benchmarks" / "studies"
PAGE = ROOT / "docs" / "RESULTS.md"
PAGES = ROOT / "docs" / "results"
ORDER = (
    "main",
    "sick",
    "remedies",
    "capacity",
    "zeroth",
    "sets",
    "ag_news",
    "map",
    "ablations",
    "economy",
    "robust",
    "speakers",
    "newsgroups",
    "questions",
)
MARK = "<!-- below: written by make results -->"
SHOWN = ("Overview", "Results", "Cost to a target", "Where each method loses", "Tuning")
"""Parts of a study's results that the page itself shows; its own page has all of them."""
MANY = 3
"""From so many places on, their overview stands for the tables of each."""
OF_EACH = ("Results", "Cost to a target")


def main(arguments: Sequence[str]) -> None:
    names = [a for a in arguments if not a.startswith("-")] or list(ORDER)
    if "FOREFED_DATA" not in os.environ:
        raise UserError("FOREFED_DATA: name the folder with the data sets")
    for name in names if "--write" not in arguments else ():
        print(f"== {name}", flush=True)
        outcome = compare(study(name))
        for cell, reason in outcome.failed.items():
            print(f"no result: {cell}: {reason}", file=sys.stderr)
    write()


def study(name: str) -> Study:
    return check_study(study_of_file(STUDIES / f"{name}.toml"))


def write() -> None:
    """The page, from the studies that have results."""
    summary = PAGE.read_text(encoding="utf-8").partition(MARK)[0] if PAGE.exists() else ""
    parts = [summary.rstrip(), MARK]
    for name in ORDER:
        folder = study(name).folder
        if not (folder / "results.md").exists():
            continue
        PAGES.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "results.html", PAGES / f"{name}.html")
        parts += [section(name, folder)]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written: {os.path.relpath(PAGE)}")


def section(name: str, folder: Path) -> str:
    """What a study asked, how it was run, and its main tables."""
    source = (STUDIES / f"{name}.toml").read_text(encoding="utf-8")
    about = [line[1:].strip() for line in source.split('name = "')[0].splitlines()]
    found = (folder / "results.md").read_text(encoding="utf-8")
    cells = json.loads((folder / STUDY).read_text(encoding="utf-8"))["cells"]
    many = len({json.dumps([c["dataset"], c["condition"]]) for c in cells}) >= MANY
    wanted = tuple(title for title in SHOWN if not (many and title in OF_EACH))
    shown = [part for part in re.split(r"\n(?=## )", found)[1:] if part[3:].startswith(wanted)]
    made = (
        f"`make results STUDY={name}` (`forefed compare benchmarks/studies/{name}.toml`), "
        f"{made_by(folder)}. Its own page (curves, budgets, protocol) is "
        f"`docs/results/{name}.html`."
    )
    tables = "\n\n".join(part.replace("## ", "### ", 1).strip() for part in shown)
    return f"## Study `{name}`\n\n{' '.join(about)}\n\n{made}\n\n{tables}"


def made_by(folder: Path) -> str:
    """How many runs there are, and the commits that they ran with."""
    cells = json.loads((folder / STUDY).read_text(encoding="utf-8"))["cells"]
    commits: dict[str, int] = {}
    for cell in cells:
        path = folder / cell["folder"] / "environment.json"
        if (path.parent / "summary.json").exists():
            environment = json.loads(path.read_text(encoding="utf-8"))
            commit = str(environment.get("commit") or "unknown")
            commits[commit] = commits.get(commit, 0) + 1
    listed = ", ".join(f"{commit} ({plural(count, 'run')})" for commit, count in commits.items())
    return f"{sum(commits.values())} of {len(cells)} runs, by commit {listed}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
