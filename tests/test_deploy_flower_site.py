"""Flower's programs at a site: their pauses, and a process per message without its imports."""

from __future__ import annotations

import importlib
import os
import sys
import time

import pytest

pytest.importorskip("flwr")

from forefed.deploy import flower_site
from forefed.deploy.flower_site import DISPATCH, LOOP, Forking, Pace, expected


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock.sleep, lambda: clock.now)


def test_a_node_asks_at_once_and_then_waits_a_tenth_of_the_silence(clock: Clock, pace: Pace):
    pace.sleep(3)
    assert clock.slept == [0.2]
    while clock.now < 110:
        pace.sleep(3)
    assert clock.slept[-1] == pytest.approx(0.1 * (clock.now - clock.slept[-1] - 100))
    while clock.now < 140:
        pace.sleep(3)
    assert clock.slept[-1] == 3  # never longer than Flower's own
    assert max(clock.slept) == 3


def test_a_message_makes_it_quick_again(clock: Clock, pace: Pace):
    while clock.now < 140:
        pace.sleep(3)
    pace.sleep(0.5)  # a message is worked on
    pace.sleep(3)
    assert clock.slept[-2:] == [0.1, 0.2]


def test_it_stands_for_the_whole_module(pace: Pace):
    assert pace.monotonic is time.monotonic


@pytest.mark.parametrize(("module", "attribute"), [(LOOP, "time"), (DISPATCH, "get_executor")])
def test_the_installed_flower_is_built_as_expected(module: str, attribute: str):
    assert hasattr(expected(module, attribute), attribute)


def test_another_flower_runs_as_it_was_made(monkeypatch, caplog):
    def other() -> None:
        expected(LOOP, "no such thing")

    called: list[str] = []
    monkeypatch.setattr(flower_site, "quick_node", other)
    monkeypatch.setattr(sys, "argv", ["x", "flower-supernode", "--superlink", "y"])
    node = importlib.import_module("flwr.supernode.cli.flower_supernode")
    monkeypatch.setattr(node, "flower_supernode", lambda: called.extend(sys.argv))
    monkeypatch.setattr(flower_site.log, "propagate", True)
    with caplog.at_level("WARNING", logger="flwr"):
        flower_site.main()
    assert called == ["flower-supernode", "--superlink", "y"]
    assert "as Flower made it" in caplog.text


@pytest.mark.parametrize("ends", [None, 0, 3, "a text"])
def test_a_task_is_a_process_of_its_own(tmp_path, ends):
    def task(spec: object) -> None:
        (tmp_path / "done").write_text(f"{spec} {os.getppid()}")
        raise SystemExit(ends)

    executor = Forking(task)
    executor.launch("spec")
    assert ended(executor) == {None: 0, 0: 0, 3: 3, "a text": 1}[ends]
    assert (tmp_path / "done").read_text() == f"spec {os.getpid()}"


def test_the_executor_takes_leave_of_those_that_have_ended():
    executor = Forking(lambda spec: None)
    executor.launch("spec")
    (child,) = executor.children
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and is still known
    executor.reconcile()
    assert not executor.children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)


def test_a_task_that_fails_leaves_the_executor_alone():
    def task(spec: object) -> None:
        raise ValueError("no")

    executor = Forking(task)
    executor.launch("spec")
    assert ended(executor) == 1


def ended(executor: Forking) -> int:
    """The exit status of its one process."""
    (child,) = executor.children
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
