"""Ctrl-C is no error: a word on how to go on, and status 130."""

import sys

import pytest

import forefed.run.choices
from forefed.cli import main


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(what):
        raise KeyboardInterrupt

    monkeypatch.setattr(forefed.run.choices, "choices_table", interrupted)
    monkeypatch.setattr(sys, "argv", ["forefed", "list", "engines"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert "--resume" in capsys.readouterr().err
