"""``forefed init``: a first configuration that is right for what somebody has, and runs."""

from __future__ import annotations

import csv
import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from commands import Command, mistake, options, plain
from federation import CLASSES, World, question_rows, snapshot, text_rows, write_lines
from forefed.config.checking import check_run
from forefed.config.config import Config, configure
from forefed.config.init import Machine, write_first
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.inspect import describe
from forefed.data.sources import Files
from forefed.data.tasks.causal_lm import CausalLM

LAPTOP = Machine(8_000_000_000, "cpu")
PLAIN = text_rows()
ROWS: dict[str, list[dict[str, Any]]] = {
    "natural": PLAIN,
    "simulated": [{"text": r["text"], "label": r["label"]} for r in PLAIN * 3],
    "unowned": [{**r, "site": r["site"] if i % 9 else None} for i, r in enumerate(PLAIN)],
    "unlabelled": [{**r, "label": r["label"] if i % 9 else None} for i, r in enumerate(PLAIN)],
    "odd names": [
        {'the "text"\n[x]': r["text"] or "w5", "topic": f'{r["label"]}\n"]{i % 2}\x7f'}
        for i, r in enumerate(PLAIN)
    ],
    "pairs": [
        {"premise": r["text"], "hypothesis": s["text"], "label": r["label"] == s["label"]}
        for r, s in pairwise(PLAIN)
    ],
    "scores": [{"text1": r["text"], "text2": "w5", "score": i / 7} for i, r in enumerate(PLAIN)],
    "several": [{"text": r["text"], "labels": [r["label"], "all"]} for r in PLAIN],
    "questions": question_rows(),
    "texts only": [{"text": r["text"] or "w5"} for r in PLAIN],
}


def settings(config: Config) -> dict[str, Any]:
    return {
        "strategy": config.strategy.name,
        "task": config.data.task.kind,
        "partition": config.partition.kind,
        "cohort": config.cohort,
        "clients": getattr(config.partition, "clients", None),
        "column": getattr(config.partition, "column", None),
    }


FOUND: dict[str, dict[str, Any]] = {
    "natural": {"partition": "natural", "column": "site", "cohort": 6, "strategy": "fedavg"},
    "simulated": {"partition": "dirichlet", "clients": 3, "cohort": 3, "task": "classification"},
    "unowned": {"partition": "natural"},
    "unlabelled": {"partition": "natural"},
    "odd names": {"partition": "dirichlet", "task": "classification"},
    "pairs": {"task": "pairs"},
    "scores": {"task": "regression"},
    "several": {"task": "multilabel"},
    "questions": {"task": "qa"},
    "texts only": {"task": "causal_lm"},
}


@pytest.mark.parametrize("what", ROWS)
def test_a_first_configuration_is_checked_and_right(
    what: str, world: World, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "rows.jsonl", ROWS[what])
    output = tmp_path / "first try.toml"
    said = write_first(data, None, output, LAPTOP)
    assert f"written: {output}" in said and f"forefed check {output}" in said
    model = world.llama if what == "texts only" else world.bert
    config = configure(output, [f"model.name='{model}'", f"out='{tmp_path}'", "data.max_length=16"])
    found = settings(config)
    assert {name: found[name] for name in FOUND[what]} == FOUND[what]
    assert config.name == "first-try"
    assert check_run(config).data is not None


def test_the_strategy_follows_the_machine(world: World, tmp_path: Path) -> None:
    for machine, strategy, device in (
        (Machine(400_000_000, "cpu"), "spry", "cpu"),
        (Machine(64_000_000_000, "cuda"), "fedavg", "cuda"),
    ):
        output = tmp_path / f"{strategy}.toml"
        write_first(world.texts, world.texts, output, machine)
        config = configure(output)
        assert (config.strategy.name, config.model.device) == (strategy, device)
        assert config.data.source.test == world.texts  # type: ignore[attr-defined]


def test_init_overwrites_nothing_and_says_what_is_wrong(
    forefed_command: Command, world: World, tmp_path: Path
) -> None:
    old = tmp_path / "mine.toml"
    old.write_text("precious")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    numbers = write_lines(tmp_path / "numbers.jsonl", [{"a": i} for i in range(20)])
    two = write_lines(tmp_path / "two.jsonl", text_rows()[:2])
    before = snapshot(tmp_path)
    for arguments, words in {
        (world.texts, "-o", old): ["exists already", "--output"],
        (world.texts, "-o", old / "x.toml"): ["--output", "folder"],
        (world.texts, "-o", tmp_path / "mine.json"): [".toml"],
        (tmp_path / "none.csv", "-o", tmp_path / "a.toml"): ["none.csv"],
        (empty, "-o", tmp_path / "a.toml"): ["empty.csv"],
        (numbers, "-o", tmp_path / "a.toml"): ["no column of texts", "a"],
        (two, "-o", tmp_path / "a.toml"): ["2 rows, too few"],
        (world.texts, "--test", numbers / "x", "-o", tmp_path / "a.toml"): ["data.source.test"],
    }.items():
        mistake(forefed_command("init", *arguments), *words)
    assert snapshot(tmp_path) == before


def test_from_init_to_labelled_rows(
    forefed_command: Command, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands that init names, as they stand, but for the model."""
    monkeypatch.chdir(tmp_path)
    said = forefed_command("init", world.texts)
    assert said.status == 0, said.err
    write_lines(tmp_path / "new.jsonl", [{"text": "w5 w6"}, {"text": "w20"}])
    typed = [line.split()[1:] for line in said.out.splitlines() if line.startswith("  forefed ")]
    assert [words[0] for words in typed] == ["check", "run", "predict"]
    tiny = options([f"model.name='{world.bert}'", "rounds=1", "data.max_length=16"])
    for words in typed:
        more = tiny if words[0] in ("check", "run") else []
        words = [word.replace("new.csv", "new.jsonl") for word in words]
        done = forefed_command(*words, *more)
        assert done.status == 0, (words, done.err)
    with (tmp_path / "labelled.csv").open(newline="") as file:
        assert [row["predicted"] in CLASSES for row in csv.DictReader(file)] == [True, True]
    assert json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())["rounds"] == 1


def test_rows_run_by_themselves(
    forefed_command: Command, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration is written for them, kept, and never taken for other rows."""
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "my rows.v1.jsonl"
    rows.write_bytes(world.texts.read_bytes())
    tiny = options([f"model.name='{world.bert}'", "rounds=1", "data.max_length=16"])
    done = forefed_command("run", rows, *tiny)
    assert done.status == 0 and "written: my-rows.toml" in plain(done.err), done.err
    assert (tmp_path / "runs" / "my-rows" / "summary.json").exists()
    file = tmp_path / "my-rows.toml"
    file.write_text(file.read_text() + "# mine\n")
    again = forefed_command("run", "my rows.v1.jsonl", "--resume", *tiny)
    assert again.status == 0 and "made of these rows before" in plain(again.err), again.err
    assert file.read_text().endswith("# mine\n")
    other = write_lines(tmp_path / "my rows.v2.jsonl", text_rows())
    mistake(forefed_command("run", other), "not of", "forefed init", "--output")
    folder = tmp_path / "site rows"
    folder.mkdir()
    mistake(forefed_command("check", folder), "no run here")
    for odd in ("book.xlsx", "notes.txt"):
        (tmp_path / odd).write_bytes(b"PK\x03\xfe" if odd == "book.xlsx" else b"some words")
        mistake(forefed_command("check", tmp_path / odd), odd, ".jsonl", "save a sheet as CSV")
    mistake(forefed_command("check", tmp_path / "none.csv"), "there is no such file")
    write_lines(folder / "train.jsonl", text_rows())
    assert forefed_command("check", folder, *tiny).status == 0
    assert (tmp_path / "site-rows.toml").exists()


def test_conversations_get_a_language_model(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a " * 40}, {"role": "assistant", "content": "b"}]
    rows = write_lines(tmp_path / "rows.jsonl", [{"messages": talk, "site": s} for s in "aabb"])
    written = tmp_path / "mine.toml"
    said = write_first(rows, None, written, Machine(10**10, "cpu"))
    config: Any = configure(base=tomllib.loads(written.read_text()))
    assert config.data.task.messages == "messages" and config.model.name == "smollm2"
    assert config.data.max_length == 80  # 81 characters, and what a template writes around them
    assert 'forefed predict runs/mine "A question' in said


def test_prompts_without_answers_are_said(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", [{"prompt": f"w{i} w5 and more"} for i in range(9)])
    found = describe(file)
    assert found.task == "causal_lm" and "column 'prompt' looks like prompts" in found.notes[0]
    table = Files(path=file).load()
    there = CausalLM().arrange(table, 0.2, Key(0))
    assert any("is learned as text" in note for note in there.notes)
    odd = write_lines(tmp_path / "n.jsonl", [{"n": 1}, {"n": 2}])
    with pytest.raises(UserError, match="Give one of texts, of messages"):
        describe(odd)


def test_more_directions_than_any_client_walks_along() -> None:
    with pytest.raises(UserError, match=r"directions.k: .* 1048576 \(got 100000000\)"):
        configure(sets=["strategy=fedfgd", "directions.k=100000000"])
