"""Invented conversations of a help desk at three sites, and of a fourth that is for tests only.

python examples/assistant/make_messages.py FOLDER writes north.jsonl, south.jsonl, west.jsonl and
test.jsonl: what the house answers, and how, is the same everywhere; the questions of the tests are
asked at no site.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

DEVICES = ("printer", "scanner", "router", "screen", "keyboard", "laptop", "phone", "projector")
FAULTS = {
    "does not switch on": "try another socket",
    "makes a noise": "open it and clean the fan",
    "is very slow": "restart it",
    "shows an error": "write down the number on the display",
    "gets hot": "take it out of the sun",
    "loses the connection": "carry it closer to the wall",
}
ASKED = (
    "Our {device} {fault}.",
    "Hello, the {device} here {fault}. What now?",
    "My {device} {fault}!",
)
SITES, TESTS = ("north", "south", "west"), 12


def main(folder: Path) -> None:
    drawn = random.Random(0)
    pairs = [(device, fault) for device in DEVICES for fault in FAULTS]
    drawn.shuffle(pairs)
    shares = {"test": pairs[:TESTS]}
    shares |= {site: pairs[TESTS + i :: len(SITES)] for i, site in enumerate(SITES)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, share in shares.items():
        asked = ASKED if name != "test" else ASKED[:1]
        rows = [conversation(device, fault, how) for device, fault in share for how in asked]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{folder}: {', '.join(shares)}")


def conversation(device: str, fault: str, asked: str) -> dict[str, list[dict[str, str]]]:
    question = asked.format(device=device, fault=fault)
    answer = f"{device.capitalize()}: first {FAULTS[fault]}. If it stays so, dial 4711."
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
