"""The configuration: closed, typed, with every slot chosen from its registry.

A configuration file (TOML) and ``--set`` say only what differs; the strategy's defaults fill the
slots it is about, and the remaining defaults stand here. A setting that nothing reads is an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from forefed.aggregate import RULES, Mean, Rule
from forefed.assign import ASSIGNS, Assign, Contiguous
from forefed.collect import COLLECTS, Collect, EveryRound
from forefed.core.errors import UserError, nearest
from forefed.core.settings import Registry, Settings, parse
from forefed.core.sizes import parse_bytes
from forefed.data.partition import PARTITIONS, Dirichlet, Partition
from forefed.data.settings import DataSettings
from forefed.gradients import ENGINES, GradientEngine
from forefed.gradients.forward import Forward
from forefed.local import CLIENTS, LocalTraining
from forefed.memo import MEMOS, Memo, Nothing
from forefed.models.adapters import ADAPTERS, Adapter, TinyLora
from forefed.models.settings import ModelSettings
from forefed.optimisers import OPTIMISERS, Optimiser, Sgd
from forefed.strategies import strategy
from forefed.transforms import TRANSFORMS, Transform
from forefed.wire import CODECS, DOWNLOADS, Codec, Dense, DenseDownload, Download

Probability = Annotated[float, Field(ge=0, le=1)]


class StrategySettings(Settings):
    """Which named set of slot defaults to start from (``forefed list strategies``)."""

    name: str = "spry"


class FaultSettings(Settings):
    """Simulated losses: the probability, per order, of each kind. They exclude one another."""

    error: Probability = 0.0
    crash: Probability = 0.0
    offline: Probability = 0.0
    deadline: Probability = 0.0
    transport: Probability = 0.0


class Budget(Settings):
    """A group of clients by the memory that their machines have for weights and training."""

    budget: Annotated[int, BeforeValidator(lambda x: parse_bytes(x, "memory"))]
    """"150MB", "2GB": for weights and a training step together; libraries come on top."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the clients; the shares of all groups sum to 1."""


class EvaluateSettings(Settings):
    """When and on what the global model is tested."""

    every: Annotated[int, Field(ge=1)] = 5
    """Rounds between two evaluations on the global test set (the last round always has one)."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    clients: Annotated[int, Field(ge=0)] = 0
    """Clients, drawn anew each time, whose own test splits are evaluated too."""


class Config(Settings):
    """Everything that decides a run. Two runs with equal configurations give equal bytes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "run"
    """Folder of the run below ``out``."""
    out: Path = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    rounds: Annotated[int, Field(ge=1)] = 20
    cohort: Annotated[int, Field(ge=1)] = 10
    """Clients sampled per round, without replacement; the answers that a round wants."""
    cohort_min: Annotated[int, Field(ge=1)] = 1
    """A round with fewer answers is abandoned: it changes nothing."""
    over_select: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Clients sampled beyond the cohort, as a share of it (0.3: 13 for 10), against slow and lost
    ones. The round ends with the cohort's last answer; later ones are dropped and counted."""
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    """Answers that take longer are lost; makes a run depend on the machine's speed."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    strategy: Annotated[StrategySettings, BeforeValidator(lambda x: _named(x))] = StrategySettings()
    model: Annotated[ModelSettings, BeforeValidator(lambda x: _named(x))] = ModelSettings()
    adapter: Annotated[SerializeAsAny[Adapter], BeforeValidator(ADAPTERS.parse)] = TinyLora()
    data: DataSettings = DataSettings()
    partition: Annotated[SerializeAsAny[Partition], BeforeValidator(PARTITIONS.parse)] = Dirichlet()
    assign: Annotated[SerializeAsAny[Assign], BeforeValidator(ASSIGNS.parse)] = Contiguous()
    engine: Annotated[SerializeAsAny[GradientEngine], BeforeValidator(ENGINES.parse)] = Forward()
    client: Annotated[SerializeAsAny[LocalTraining], BeforeValidator(CLIENTS.parse)] = (
        LocalTraining()
    )
    transforms: tuple[
        Annotated[SerializeAsAny[Transform], BeforeValidator(TRANSFORMS.parse)], ...
    ] = ()
    codec: Annotated[SerializeAsAny[Codec], BeforeValidator(CODECS.parse)] = Dense()
    download: Annotated[SerializeAsAny[Download], BeforeValidator(DOWNLOADS.parse)] = (
        DenseDownload()
    )
    collect: Annotated[SerializeAsAny[Collect], BeforeValidator(COLLECTS.parse)] = EveryRound()
    rule: Annotated[SerializeAsAny[Rule], BeforeValidator(RULES.parse)] = Mean()
    server: Annotated[SerializeAsAny[Optimiser], BeforeValidator(OPTIMISERS.parse)] = Sgd()
    memo: Annotated[SerializeAsAny[Memo], BeforeValidator(MEMOS.parse)] = Nothing()
    server_schedule: Literal["constant", "linear"] = "constant"
    """"linear": the server's learning rates fall from their values in round 1 towards 0 at the end
    (averages out the noise of the last cohorts)."""
    faults: FaultSettings = FaultSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    memory: Annotated[tuple[Budget, ...], BeforeValidator(lambda x: _budgets(x))] = ()
    """For ``engine.kind = "auto"``: one size for all clients ("2GB"), or groups
    (``[{budget = "150MB", share = 0.5}, ...]``), each client belonging to one for good."""

    @property
    def folder(self) -> Path:
        return self.out / self.name


def _budgets(raw: Any) -> Any:
    """``memory = "2GB"`` is short for one group of all clients."""
    return ({"budget": raw},) if isinstance(raw, str | int) else raw


def _named(raw: Any) -> Any:
    """``strategy = "spry"`` is short for ``strategy.name = "spry"``."""
    return {"name": raw} if isinstance(raw, str) else raw


SLOTS: dict[str, Registry[Any]] = {
    "adapter": ADAPTERS,
    "partition": PARTITIONS,
    "assign": ASSIGNS,
    "engine": ENGINES,
    "client": CLIENTS,
    "codec": CODECS,
    "download": DOWNLOADS,
    "collect": COLLECTS,
    "rule": RULES,
    "server": OPTIMISERS,
    "memo": MEMOS,
}


def configure(
    file: Path | None = None, sets: Sequence[str] = (), base: dict[str, Any] | None = None
) -> Config:
    """A configuration from a TOML file and ``key=value`` settings, which win.

    Args:
        base: settings below the file's, for callers that bring a preset (the demo).

    Raises:
        UserError: an unreadable file, an unknown key or kind, a value that does not fit, or a
            setting that contradicts the strategy; one line per mistake.
    """
    raw = merge(base or {}, read_toml(file) if file else {})
    for item in sets:
        raw = merge(raw, assignment(item))
    unknown = [key for key in raw if key not in Config.model_fields]
    if unknown:
        raise UserError(
            f"{unknown[0]}: unknown setting; {nearest(unknown[0], Config.model_fields)}"
        )
    chosen = parse(StrategySettings, _named(raw.get("strategy", {})), "strategy")
    method = strategy(chosen.name)
    config = parse(Config, merge(_with_kinds(method.sections), raw))
    for section, kinds in method.fixed.items():
        kind = getattr(config, section).kind
        if kind not in kinds:
            raise UserError(
                f"{section}.kind = '{kind}' would not be {method.name} any more (it needs "
                f"{' or '.join(kinds)}); for others see 'forefed list strategies'"
            )
    return config


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, table by table; a table of another ``kind`` replaces all."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, str):
            value = _spelled_out(key, value)
        if isinstance(below, str) and isinstance(value, dict):
            below = _spelled_out(key, below)
        if (
            isinstance(below, dict)
            and isinstance(value, dict)
            and ("kind" not in below or value.get("kind", below["kind"]) == below["kind"])
        ):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def _spelled_out(section: str, short: str) -> dict[str, Any]:
    """``engine = "backprop"`` is short for ``engine.kind``, ``model = "minilm"`` for its name."""
    return {"name" if section in ("strategy", "model") else "kind": short}


def _with_kinds(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The strategy's sections on top of the default kinds, so that a section may omit its kind."""
    kinds = {name: {"kind": Config.model_fields[name].default.kind} for name in SLOTS}
    optimiser = {"optimiser": {"kind": LocalTraining().optimiser.kind}}
    data = {
        "source": {"kind": DataSettings().source.kind},
        "task": {"kind": DataSettings().task.kind},
    }
    return merge(merge(kinds, {"client": optimiser, "data": data}), dict(sections))


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises UserError if it cannot be read."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: not valid TOML: {error}") from None


def assignment(item: str) -> dict[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {item!r}: write key=value, for example --set rounds=50")
    try:
        value: Any = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    if isinstance(value, date | time):
        value = text.strip()  # no setting is a date, but a name may look like one
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return dict(value)
