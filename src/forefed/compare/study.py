"""What to compare: a study, read from one TOML file or made from configuration files.

    settings of a run = base < data set < method < condition < tuned settings < seed

with the later ones on top. A *method* is a named set of settings; a *condition* one choice of the
values under ``over``; everything else is shared, which is what makes a comparison one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from forefed.config.config import assignment, merge, read_toml
from forefed.core.errors import UserError, nearest
from forefed.core.names import Name
from forefed.core.settings import Settings, parse
from forefed.core.sizes import parse_bytes

Table = dict[str, Any]
Grid = Annotated[dict[str, tuple[Any, ...]], BeforeValidator(lambda x: flat_grid(x))]
"""Settings by dotted name, each with the values to try."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Bytes = Annotated[int, BeforeValidator(lambda x: parse_bytes(x, "budgets"))]

OWN = ("name", "out", "seed")
"""Settings of a run that the study itself decides."""
METHOD_KEYS = ("strategy", "strategy.name")
"""Keys whose values under ``--over`` are methods, not conditions."""


class Tuning(Settings):
    """How the settings under a method's ``tune`` are chosen: on validation rows, never on test."""

    rounds: Annotated[int, Field(ge=1)] | None = None
    """Rounds of a tuning run; None: a third of the run's."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Tuning runs per point of the grid, with the first seeds of the study."""
    by: Literal["quality", "loss"] = "quality"
    """What is compared on the validation rows. "loss": where all are still near chance."""
    on: str | None = None
    """Tune on this data set alone; the others take what was chosen there. None: on each."""


class Budgets(Settings):
    """Where to read quality under a budget; empty: chosen from what the methods needed."""

    memory: tuple[Bytes, ...] = ()
    """Above the weights, at a client."""
    bytes: tuple[Bytes, ...] = ()
    """Of all messages, both ways."""
    forwards: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Forward-equivalents of all clients."""


class Study(Settings):
    """A comparison: methods x data sets x conditions x seeds."""

    name: Name = "study"
    """Results and runs lie in ``out``/``name``."""
    out: Path = Path("compare")
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(lambda x: _seeds(x))] = (0, 1, 2)
    """A number of seeds (3: seeds 0, 1, 2), or the seeds themselves."""
    reference: str | None = None
    """The method that the others are compared with, seed by seed; None: the first."""
    target: float | None = None
    """Quality (accuracy 0..1 or bits per byte) whose cost is told; None: 95 % of the best method's
    final quality on each data set."""
    base: Table = Field(default_factory=dict)
    datasets: dict[Name, Table] = Field(default_factory=dict)
    """Settings by the name of a data set (``data``, ``partition``); none: what ``base`` says."""
    methods: dict[Name, Table]
    """Settings by the name of a method; the table ``tune`` in it holds settings to be tuned."""
    over: Grid = Field(default_factory=dict)
    """Conditions: settings by dotted name, each with the values to compare under."""
    tuning: Tuning = Tuning()
    budgets: Budgets = Budgets()

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def settings(self, method: str) -> Table:
        """A method's own settings, without what is to be tuned."""
        return {k: v for k, v in self.methods[method].items() if k != "tune"}

    def tune(self, method: str) -> dict[str, tuple[Any, ...]]:
        """The values to try for a method, by dotted name."""
        return flat_grid(self.methods[method].get("tune", {}), f"methods.{method}.tune")


def study_of_file(file: Path, sets: Sequence[str] = ()) -> Study:
    """A study from its TOML file. ``$NAME`` in a text is filled in from the environment.

    Args:
        sets: ``key=value`` settings of every run, on top of the file's ``base``.

    Raises:
        UserError: unreadable, an unknown key, or a value that does not fit.
    """
    raw = _filled(read_toml(file), str(file))
    raw.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", file.stem))
    if sets:
        raw["base"] = _with(raw.get("base", {}), sets)
    return check_study(parse(Study, raw, str(file)))


def study_of_configs(
    files: Sequence[Path], over: Sequence[str] = (), sets: Sequence[str] = (), **more: Any
) -> Study:
    """A study whose methods are configuration files, each named by its ``name`` or its file.

    Args:
        over: ``key=value,value``: a condition for every value; values of ``strategy.name`` are
            methods instead.
        sets: ``key=value`` settings of every run.
        more: fields of ``Study``.

    Raises:
        UserError: unreadable files, two methods of one name, or ``over`` that is no list.
    """
    methods: dict[str, Table] = {}
    for file in files:
        raw = _filled(read_toml(file), str(file))
        if not raw:
            raise UserError(
                f"{file}: empty; a study names methods ([methods.NAME]), and a configuration has "
                "settings"
            )
        name = raw.pop("name", file.stem)
        raw = {k: v for k, v in raw.items() if k not in OWN}
        if name in methods:
            raise UserError(f"{file}: a second method named '{name}'; give them different names")
        methods[str(name)] = _with(raw, sets)
    if not files:
        methods["base"] = _with({}, sets)
    grid = dict(values_of(item, "--over") for item in over)
    strategies = [v for key in METHOD_KEYS for v in grid.pop(key, ())]
    if strategies:
        single = len(methods) == 1
        methods = {
            str(s) if single else f"{name}.{s}": merge(raw, {"strategy": {"name": s}})
            for name, raw in methods.items()
            for s in strategies
        }
    return check_study(parse(Study, {"methods": methods, "over": grid, **more}, "compare"))


def with_tune(study: Study, tune: Sequence[str]) -> Study:
    """The study with ``key=value,value`` to be tuned for every method that has no such grid."""
    grid = dict(values_of(item, "--tune") for item in tune)
    methods = {
        name: {**raw, "tune": {**grid, **study.tune(name)}} for name, raw in study.methods.items()
    }
    return study.model_copy(update={"methods": methods}) if grid else study


def check_study(study: Study) -> Study:
    """The same study.

    Raises:
        UserError: no method, an unknown reference, or settings that the study itself decides.
    """
    if not study.methods:
        raise UserError("methods: name at least one, for example [methods.fedavg]")
    if study.reference is not None and study.reference not in study.methods:
        raise UserError(f"reference: no method '{study.reference}': {_near(study)}")
    if study.tuning.on is not None and study.tuning.on not in study.datasets:
        raise UserError(f"tuning.on: no data set '{study.tuning.on}' under datasets")
    places = {"base": study.base}
    places |= {f"datasets.{name}": raw for name, raw in study.datasets.items()}
    places |= {f"methods.{name}": study.settings(name) for name in study.methods}
    for place, raw in places.items():
        for key in raw:
            if key in OWN:
                raise UserError(f"{place}.{key}: the study decides this for every run; remove it")
    for name in study.methods:
        study.tune(name)
    return study


def nested(key: str, value: Any) -> Table:
    """``a.b``, 1 -> ``{"a": {"b": 1}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def flat_grid(raw: Any, where: str = "") -> dict[str, tuple[Any, ...]]:
    """Lists of values by dotted name, from tables that may be nested.

    Raises:
        UserError: a value that is no list, or an empty one.
    """
    found: dict[str, tuple[Any, ...]] = {}
    if not isinstance(raw, dict):
        raise UserError(f"{where or 'over'}: give a table of settings with lists of values")
    for key, value in raw.items():
        place = f"{where}.{key}" if where else str(key)
        if isinstance(value, dict):
            found |= {f"{key}.{below}": v for below, v in flat_grid(value, place).items()}
        elif isinstance(value, list | tuple) and value:
            found[key] = tuple(value)
        else:
            raise UserError(f"{place}: give a list of values, for example {key} = [0.1, 1.0]")
    return found


def values_of(item: str, option: str) -> tuple[str, tuple[Any, ...]]:
    """``key=1,2`` -> key, (1, 2)."""
    key, equals, text = item.partition("=")
    parts = [part for part in text.split(",") if part.strip()]
    if not equals or not key.strip() or not parts:
        raise UserError(
            f"{option} {item!r}: write key=value,value, for example partition.alpha=0.1,1"
        )
    values = []
    for part in parts:
        value: Any = assignment(f"x={part}")["x"]
        values.append(value)
    return key.strip(), tuple(values)


def _with(raw: Table, sets: Sequence[str]) -> Table:
    for item in sets:
        raw = merge(raw, assignment(item))
    return raw


def _seeds(raw: Any) -> Any:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw < 1:
            raise ValueError("at least one seed is needed")
        return tuple(range(raw))
    if isinstance(raw, list | tuple) and (not raw or len(set(raw)) != len(raw)):
        raise ValueError("give at least one seed, and each once")
    return raw


def _filled(value: Any, place: str) -> Any:
    """The same with ``$NAME`` and ``${NAME}`` in texts replaced by the environment's values."""
    if isinstance(value, dict):
        return {key: _filled(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, place) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"{place}: '{value}' needs the environment variable {name}; set it")
        return os.environ[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", fill, value)


def _near(study: Study) -> str:
    return nearest(str(study.reference), study.methods)


def is_study(file: Path) -> bool:
    """Does the file describe a study (it has ``methods``) rather than one run?"""
    return "methods" in read_toml(file)
