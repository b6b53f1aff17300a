"""Callbacks that hand a run on to what others look at: TensorBoard, MLflow, Weights & Biases.

    run(config, callbacks=[TensorBoard("logs")])

The record is complete without them. Each needs its package only when it is made.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.types import Json
from forefed.run.build import Federation
from forefed.run.callback import Callback


class Scalars(Callback):
    """Base: plain numbers by name ("round/loss", "test/accuracy") and round.

    Subclasses say what to do with them in ``begin``, ``write`` and ``finish``.
    """

    def begin(self, name: str, settings: Json) -> None:
        """The run's name and its whole configuration, before the first number."""

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        """Finite numbers of one round."""
        raise NotImplementedError

    def finish(self, summary: Json) -> None:
        """The run has ended."""

    def built(self, federation: Federation, start_round: int) -> None:
        self.begin(federation.config.name, federation.config.model_dump(mode="json"))

    def round(self, line: Json) -> None:
        self.write(line["round"], numbers_of("round", line))

    def evaluated(self, line: Json) -> None:
        self.write(line["round"], numbers_of(line["split"], line))

    def ended(self, summary: Json) -> None:
        self.finish(summary)


class TensorBoard(Scalars):
    """Event files for ``tensorboard --logdir FOLDER``; one folder below it for each run.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.library = needed("torch.utils.tensorboard", "tensorboard")
        self.writer: Any = None

    def begin(self, name: str, settings: Json) -> None:
        self.writer = self.library.SummaryWriter(str(self.folder / name))

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, round)

    def finish(self, summary: Json) -> None:
        self.writer.close()


class MLflow(Scalars):
    """A run of MLflow in ``experiment``, with the settings as parameters.

    Where it goes says MLflow's own MLFLOW_TRACKING_URI.

    Raises:
        UserError: the package mlflow is not installed.
    """

    def __init__(self, experiment: str = "forefed"):
        self.experiment = experiment
        self.library = needed("mlflow", "mlflow")

    def begin(self, name: str, settings: Json) -> None:
        self.library.set_experiment(self.experiment)
        self.library.start_run(run_name=name)
        self.library.log_params({k: str(v)[:250] for k, v in flat(settings).items()})

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        self.library.log_metrics(dict(numbers), step=round)

    def finish(self, summary: Json) -> None:
        good = summary["status"] == "finished"
        self.library.end_run("FINISHED" if good else "FAILED")


class WandB(Scalars):
    """A run of Weights & Biases in ``project``.

    Offline unless ``online``: numbers leave this machine only when they are asked to.

    Raises:
        UserError: the package wandb is not installed.
    """

    def __init__(self, project: str = "forefed", online: bool = False):
        self.project, self.mode = project, "online" if online else "offline"
        self.library = needed("wandb", "wandb")
        self.run: Any = None

    def begin(self, name: str, settings: Json) -> None:
        self.run = self.library.init(
            project=self.project, name=name, config=settings, mode=self.mode
        )
        # Evaluations of a round come before its own line; both have the round as their axis.
        self.run.define_metric("*", step_metric="number")

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        self.run.log({"number": round, **numbers})

    def finish(self, summary: Json) -> None:
        self.run.summary["status"] = summary["status"]
        self.run.finish(exit_code=0 if summary["status"] == "finished" else 1)


def needed(module: str, package: str) -> Any:
    """The module; raises UserError where its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"this callback needs the package {package}: pip install 'forefed[{package}]'"
        ) from None


def numbers_of(prefix: str, line: Json) -> dict[str, float]:
    """The finite numbers of a line of the record, tables in it opened."""
    return {
        f"{prefix}/{name}": float(value)
        for name, value in flat(line).items()
        if name != "round"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def flat(tables: Json, prefix: str = "") -> Json:
    """The same with tables in it opened: "seconds": {"total": 1} becomes "seconds.total": 1."""
    found: Json = {}
    for name, value in tables.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            found[f"{prefix}{name}"] = value
    return found
