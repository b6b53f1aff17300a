"""Ctrl-C and SIGTERM are no errors: a word on how to go on, and status 130."""

import os
import signal
import sys

import pytest

import forefed.run.choices
from forefed.cli import main


def ctrl_c():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [ctrl_c, terminate])
def test_being_stopped_says_how_to_go_on(stop, monkeypatch, capsys):
    def interrupted(what, verbose):
        stop()

    monkeypatch.setattr(forefed.run.choices, "choices_tables", interrupted)
    monkeypatch.setattr(sys, "argv", ["forefed", "list", "engines"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "--resume" in capsys.readouterr().err
