"""Callbacks are told everything, cannot break a run, and lead to what others look at."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

import forefed
from federation import World, lines
from forefed.core.errors import Stopped, UserError
from forefed.core.types import Json
from forefed.run import Callback, run
from forefed.run.callback import Told
from forefed.run.callbacks import MLflow, TensorBoard, WandB, numbers_of


class Everything(Callback):
    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in Callback.__dict__ and not name.startswith("_"):
            object.__getattribute__(self, "events").append(name)
        return object.__getattribute__(self, name)


class Broken(Callback):
    def round(self, line: Json) -> None:
        raise RuntimeError("not today")


def test_a_run_tells_all_and_goes_on_when_a_callback_fails(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = Everything()
    with caplog.at_level(logging.ERROR):
        result = run(world.config(tmp_path), callbacks=[Broken(), told])
    assert result.summary["status"] == "finished"
    (logged,) = caplog.records  # once, though there were two rounds
    assert "Broken.round" in logged.getMessage() and "not today" in str(logged.exc_info)
    assert told.events.count("round") == 2 and told.events.count("outcome") == 6
    assert told.events[-1] == "ended" and "loading" in told.events and "built" in told.events


def test_callbacks_are_public_and_the_former_name_is_kept() -> None:
    assert forefed.Callback is Callback is forefed.Watcher


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Stopped])
def test_a_callback_may_stop_a_run(stop: type[BaseException]) -> None:
    class Stops(Callback):
        def round(self, line: Json) -> None:
            raise stop

    with pytest.raises(stop):
        Told([Stops()])("round", {})


@pytest.mark.parametrize(
    ("writer", "package"), [(TensorBoard, "tensorboard"), (MLflow, "mlflow"), (WandB, "wandb")]
)
def test_a_missing_package_is_one_sentence(
    writer: type, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'forefed\[{package}\]'"):
        writer("x")


class Recorder:
    """Stands for all three packages: keeps what was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Recorder:
            self.calls.append((name, arguments, more))
            return self

        return call


def test_every_number_of_the_record_is_written_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, flow, bias = Recorder(), Recorder(), Recorder()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "mlflow", flow)
    monkeypatch.setitem(sys.modules, "wandb", bias)
    writers = [TensorBoard(tmp_path / "board"), MLflow("mine"), WandB("mine")]
    result = run(world.config(tmp_path), callbacks=writers)
    rounds = [numbers_of("round", x) for x in lines(result.folder, "rounds.jsonl")]
    tests = [numbers_of("test", x) for x in lines(result.folder, "evaluations.jsonl")]
    wanted = sorted(name for numbers in (*rounds, *tests) for name in numbers)
    assert "round/seconds.total" in wanted and "test/accuracy" in wanted
    assert sorted(a[0] for name, a, _ in board.calls if name == "add_scalar") == wanted
    metrics = [a[0] for name, a, _ in flow.calls if name == "log_metrics"]
    assert sorted(name for numbers in metrics for name in numbers) == wanted
    logged = [a[0] for name, a, _ in bias.calls if name == "log"]
    assert sorted(n for numbers in logged for n in numbers if n != "number") == wanted
    assert board.calls[-1][0] == "close" and flow.calls[-1][:2] == ("end_run", ("FINISHED",))
    started = next(more for name, _, more in bias.calls if name == "init")
    assert started["mode"] == "offline" and bias.summary == {"status": "finished"}


def test_numbers_that_are_none_are_left_out() -> None:
    line = {
        "round": 3,
        "loss": float("nan"),
        "n": 2,
        "cohort": [1],
        "ok": True,
        "seconds": {"a": 1},
    }
    assert numbers_of("round", line) == {"round/n": 2.0, "round/seconds.a": 1.0}
