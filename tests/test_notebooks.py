"""The notebooks of examples/ run from their first cell to their last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from federation import World

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(notebook: Path, world: World, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert code and not any(c.get("outputs") for c in cells)  # outputs do not go into git
    places = dict(os.environ)
    if "RUN" in "".join(code):
        places["RUN"] = str(world.run(tmp_path, "strategy=fedavg").folder)
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)],
        capture_output=True,
        text=True,
        env=places,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
