"""Rows for the example of a deployment: docstrings of Python's own library, at three sites.

    python examples/deploy/make_rows.py     # north.csv south.csv west.csv test.csv, in this folder
    python examples/deploy/make_rows.py rows ana ben cleo     # test.csv and these sites', in rows/
    python examples/deploy/make_rows.py --rows 400 rows ana ben cleo     # up to 400 each

A site's rows come from modules that no other site has, as hospitals have patients of their own. The
test rows come from further modules. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from forefed.core.keys import Key
from forefed.data.pydocs import read_docstrings

AREAS = ("files", "gui", "internet", "numbers")
SITES = {"north": 400, "south": 300, "west": 300}
TEST = 400


EACH = 150
"""Rows of sites that are named on the command line."""


def main(folder: Path, sites: dict[str, int], at_most: int | None = None) -> None:
    """Write a file for every site, and one to test on; of a module ``at_most`` rows, so that every
    site has several (None: all)."""
    folder.mkdir(parents=True, exist_ok=True)
    docs = [d for d in read_docstrings() if d.area in AREAS]
    modules = sorted({d.module for d in docs})
    order = Key(0).fold("sites").permutation(len(modules))
    waiting = {**sites, "test": TEST}
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in waiting}
    for index in order:
        own = [(d.text, d.area) for d in docs if d.module == modules[index]][:at_most]
        name = min(waiting, key=lambda n: len(rows[n]) / waiting[n])
        rows[name] += own
    for name, most in waiting.items():
        chosen = Key(0).fold("rows", list(waiting).index(name)).permutation(len(rows[name]))[:most]
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(rows[name][i] for i in chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Rows for the example of a deployment.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("sites", nargs="*")
    parser.add_argument("--rows", type=int, help="of each site that is named, at most")
    given = parser.parse_args()
    if not given.sites:
        main(given.folder, SITES)
    elif given.rows is None:
        main(given.folder, dict.fromkeys(given.sites, EACH), EACH // 10)
    else:
        main(given.folder, dict.fromkeys(given.sites, given.rows), given.rows // 5)
