"""Runs the command line in this process, and keeps some finished runs for its tests."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from federation import Interrupted, StopAfter, World
from forefed import cli
from forefed.run import run


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def forefed_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``forefed ARGUMENTS`` in this process, through the program's own entry point."""

    def command(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["forefed", *map(str, arguments)])
        capsys.readouterr()
        # rich's consoles look up the standard streams when they print
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return command


def plain(text: str) -> str:
    """Without colours, boxes and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╰╮╯─]", " ", text).split())


def options(sets: list[str]) -> list[str]:
    return [word for item in sets for word in ("--set", item)]


@pytest.fixture(scope="session")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of finished runs by task, and of one that was interrupted."""
    out = tmp_path_factory.mktemp("finished")
    config = world.config(out, "name=unfinished")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(1))
    pairs = [f"data.source.path='{world.pairs}'", "data.task=pairs"]
    fedavg = ["strategy=fedavg", "name=classification"]
    return {
        "classification": world.run(out, *fedavg).folder,
        "pairs": world.run(out, *pairs, "name=pairs").folder,
        "causal_lm": world.run(out, *world.lm, "name=lm").folder,
        "unfinished": config.folder,
    }


def mistake(said: Said, *words: str) -> None:
    """One message on stderr that contains these words, and status 2; no stack trace."""
    assert said.status == 2, said
    assert said.err.count("error:") == 1 and "Traceback" not in said.err + said.out
    for word in words:
        assert word in said.err, (word, said.err)
