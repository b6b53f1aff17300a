"""Ctrl-C and SIGTERM are no errors: status 130, and a word on what is kept where something is."""

import os
import signal
import subprocess
import sys
import time

import pytest

import forefed.config.catalogue
from commands import Command, options
from federation import World
from forefed.cli import main
from forefed.run import Callback


def ctrl_c():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [ctrl_c, terminate])
def test_a_command_that_keeps_nothing_says_nothing_of_rounds(stop, monkeypatch, capsys):
    def interrupted(what, verbose):
        stop()

    monkeypatch.setattr(forefed.config.catalogue, "choices_tables", interrupted)
    monkeypatch.setattr(sys, "argv", ["forefed", "list", "engines"])
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert said.strip() == "stopped"
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("when", ["loading", "round"])
def test_a_run_says_what_is_kept(when, forefed_command: Command, world: World, tmp_path):
    """At the first thing that is loaded there is no run yet; after a round there is one."""
    from forefed.run.progress import Progress

    told = getattr(Progress, when)

    def stopping(self, *about):
        told(self, *about)
        ctrl_c()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, when, stopping)
        said = forefed_command("run", *options(world.sets(tmp_path)))
    assert said.status == 130
    if when == "loading":
        assert "nothing was written" in said.err and "--resume" not in said.err
        return
    assert "finished rounds are kept: 1" in said.err
    command = said.err.split("go on with: forefed ")[1].split()
    again = forefed_command(*command)  # what it says works
    assert again.status == 0 and "going on after round 1" in again.out


def test_a_second_signal_ends_at_once_without_a_trace(tmp_path):
    # (a suite that runs in the background ignores Ctrl-C, and its children with it)
    code = """
import signal, sys, time
from forefed.core.boundary import guarded
signal.signal(signal.SIGINT, signal.default_int_handler)
def work():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("cleaning", flush=True)
        time.sleep(30)
sys.exit(guarded(work, print))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for word in ("ready", "cleaning"):
        assert process.stdout.readline().strip() == word
        process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - began < 10
    assert err.strip() == "stopped at once" and "Traceback" not in out


def test_the_byte_counter_of_a_resumed_run_goes_on(world: World, tmp_path):
    from rich.console import Console

    from federation import Interrupted, StopAfter
    from forefed.run import run
    from forefed.run.progress import Progress

    config = world.config(tmp_path, "rounds=3")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(2))

    class Sums(Callback):
        up = 0

        def round(self, line):
            Sums.up += line["bytes_up"]

    with Progress(Console(file=(tmp_path / "out").open("w")), config) as progress:
        result = run(config, resume=True, callbacks=[progress, Sums()])
    assert progress.bytes[0] == result.summary["totals"]["bytes_up"] > Sums.up


def test_no_bar_stands_before_an_error(world: World, tmp_path):
    import io

    from rich.console import Console

    from forefed.core.errors import UserError
    from forefed.run import run
    from forefed.run.progress import Progress

    config = world.config(tmp_path, "data.source.path=nowhere.csv")
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=80)
    with pytest.raises(UserError), Progress(console, config) as progress:
        run(config, watcher=progress)
    assert "0/2" not in said.getvalue()
