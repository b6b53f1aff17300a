"""Tiny studies, and a stand-in for the processes of their cells."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from federation import World
from forefed.compare import Study, schedule
from forefed.config.config import assignment, merge


def base_of(world: World, *more: str) -> dict:
    """The settings of a tiny run, as a study's ``base``."""
    raw: dict = {}
    for item in [*world.sets(Path("unused"), *more)]:
        raw = merge(raw, assignment(item))
    return {key: value for key, value in raw.items() if key != "out"}


def tiny_study(world: World, out: Path, *more: str, **fields: object) -> Study:
    methods = fields.pop("methods", None) or {
        "fedavg": {"strategy": "fedavg"},
        "spry": {"strategy": "spry"},
    }
    return Study(base=base_of(world, *more), methods=methods, out=out, **fields)


# A stand-in for the process of a cell: no torch, no training.

FAKE = """
import json, sys
from pathlib import Path
config = json.loads(sys.stdin.readline())
folder = Path(config["out"]) / config["name"]
if config["client"]["optimiser"]["lr"] == 13:
    print("client.optimiser.lr: an unlucky number", file=sys.stderr)
    sys.exit(2)
if config["client"]["optimiser"]["lr"] == 17:
    raise RuntimeError("a bug")
quality = 1 - abs(config["client"]["optimiser"]["lr"] - 0.1)
folder.mkdir(parents=True)
def write(name, value):
    (folder / name).write_text(json.dumps(value) + "\\n")
write("environment.json", {})
write("partition.json", {})
write("config.json", config)
write("rounds.jsonl", {"round": 1, "cohort": [0], "replies": 1})
loss = config["client"]["optimiser"]["lr"] / 10
scores = {"loss": loss, "accuracy": quality, "n": 10}
write("evaluations.jsonl", {"round": 1, "split": "test", **scores})
write("summary.json", {"rounds": 1, "digest": "", "final": scores, "baseline": {}})
"""


@pytest.fixture
def fake_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "COMMAND", [sys.executable, "-S", "-c", FAKE])


def study_file(tmp_path: Path, world: World, methods: dict, more: str = "") -> Path:
    """A study in TOML (of which JSON's tables and lists are values)."""

    def toml(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f'"{k}" = {toml(v)}' for k, v in value.items()) + "}"
        return json.dumps(value)

    text = f"{more}\nout = '{tmp_path}'\nbase = {toml(base_of(world))}\nmethods = {toml(methods)}\n"
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path
