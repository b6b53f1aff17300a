"""House rules that no linter knows: file length, and no global random generator in the package."""

from __future__ import annotations

import re
import sys
from pathlib import Path

MAX_LINES = 800
FOLDERS = ("src", "tests", "benchmarks", "tools", "examples")
GLOBAL_GENERATORS = re.compile(
    r"torch\.(manual_seed|rand|randn|randint|randperm)\(|np\.random\.|\brandom\.(seed|random|choice)\("
    r"|pickle\.loads?\(|(?<!safetensors\.)torch\.load\("
)

OTHERS = "(a script's own)"
"""Ends a line about generators that scripts of others draw from, which are seeded and restored."""


def main(root: Path = Path(__file__).parents[1]) -> int:
    faults: list[str] = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            lines = path.read_text(encoding="utf-8").splitlines()
            place = path.relative_to(root)
            if len(lines) > MAX_LINES:
                faults.append(f"{place}: {len(lines)} lines; at most {MAX_LINES}")
            if folder == "src":
                faults += [
                    f"{place}:{number}: a global generator or unpickling: {line.strip()}"
                    for number, line in enumerate(lines, 1)
                    if GLOBAL_GENERATORS.search(line) and not line.endswith(OTHERS)
                ]
    print("\n".join(faults) or "house rules: kept")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
