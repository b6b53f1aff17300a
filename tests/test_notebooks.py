"""The notebooks of examples/ run from their first cell to their last."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from copies import in_a_copy
from federation import World

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(
    notebook: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert code and not any(c.get("outputs") for c in cells)  # outputs do not go into git
    if "RUN" in "".join(code):
        monkeypatch.setenv("RUN", str(world.run(tmp_path, "strategy=fedavg").folder))
    monkeypatch.chdir(tmp_path)
    Path("cells.py").write_text("\n\n".join(code), encoding="utf-8")
    in_a_copy(lambda: runpy.run_path("cells.py", run_name="__main__"))
