"""README's protected deployment, command by command: TLS, a secure sum, noise, and what it learns.

Minutes long, so not among the default tests: ``make test-deploy``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from documents import ROOT, blocks
from forefed.config.compat import check
from forefed.config.config import configure
from forefed.privacy import Ledger
from real import FOREFED, free_port

SITES = ("north", "south", "west", "east", "centre")
RUN = ROOT / "examples" / "deploy" / "protected.toml"


def commands_of_the_page() -> list[str]:
    """A line each, of the one block that starts this run."""
    (block,) = [b for b in blocks(ROOT / "README.md") if RUN.name in b.text]
    return block.text.splitlines()


def test_the_run_can_be_started_and_takes_ten_commands_at_most() -> None:
    check(configure(RUN), deployed=True)
    assert len(commands_of_the_page()) <= 10


@pytest.mark.deploy
def test_the_commands_of_the_page_learn_under_noise_and_a_secure_sum(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("forefed", FOREFED), ("python", [sys.executable])):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    text = "\n".join(line for line in commands_of_the_page() if not line.startswith("pip "))
    for port in sorted(set(re.findall(r"\b(?:8444|92\d\d)\b", text))):
        text = text.replace(port, str(free_port()))
    path = f"{programs}:{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-e", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdout=(tmp_path / "out").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        ended = shell.wait(1500)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGTERM)
    said = (tmp_path / "out").read_text()
    assert ended == 0, said
    folder = tmp_path / "safe" / "server" / "runs" / "protected"
    summary = json.loads((folder / "summary.json").read_text())
    (spent,) = summary["privacy"]
    assert spent["unit"] == "example" and spent["epsilon"] <= 4.0 + 1e-9
    assert "rehearsal" not in spent["text"]
    start = json.loads((folder / "start.json").read_text())
    assert start["clients"] == 5 and start["private"]
    assert summary["final"]["accuracy"] > 0.419 + 0.1  # the most frequent class, and then some
    for site in SITES:  # each has counted the one release that it was part of
        assert [r.round for r in Ledger.of(tmp_path / "safe" / site).made] == [0]
