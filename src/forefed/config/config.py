"""The configuration: closed, typed, with every slot chosen from its registry.

A configuration file (TOML) and ``--set`` say only what differs; the strategy's defaults fill the
slots it is about, and the remaining defaults stand here. A setting that nothing reads is an error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from forefed.aggregate import AGGREGATORS, Aggregator, Mean
from forefed.assign import ASSIGNS, Assign, Contiguous
from forefed.attacks import ATTACKS, Attack, NoAttack
from forefed.channel import CHANNELS, Channel, Plain
from forefed.config.advice import AUTO, advised
from forefed.config.former import FORMER, present
from forefed.core.errors import UserError, nearest
from forefed.core.names import Name
from forefed.core.settings import SERVER_ONLY, Choice, Settings, Slot, canonical, parse, slots_of
from forefed.core.sizes import parse_bytes
from forefed.data.partition import PARTITIONS, Dirichlet, Partition
from forefed.data.settings import DataSettings
from forefed.directions import DIRECTIONS, Basis, Directions, Fresh
from forefed.federation.download import DOWNLOADS, DenseDownload, Download
from forefed.federation.topology import TOPOLOGIES, Central, Topology
from forefed.gradients import ENGINES, GradientEngine
from forefed.gradients.forward import Forward
from forefed.guard import GUARDS, Guard
from forefed.guard import Auto as AutoGuard
from forefed.local import CLIENTS, LocalTraining
from forefed.models.adapters import ADAPTERS, Adapter, TinyLora
from forefed.models.objectives import OBJECTIVES, Objective
from forefed.models.settings import ModelSettings
from forefed.modifiers import MODIFIERS, Modifier
from forefed.optimisers import OPTIMISERS, Optimiser, Sgd
from forefed.select import SELECTORS, Selector, Uniform
from forefed.sharing import SHARINGS, Sharing
from forefed.sharing import Everything as AllShared
from forefed.start import STARTS, Start
from forefed.start import Auto as AutoStart
from forefed.strategies import STRATEGIES, Strategy, strategy
from forefed.trigger import TRIGGERS, EveryRound, Trigger
from forefed.wire import CODECS, Codec, Dense

E = TypeVar("E")
Probability = Annotated[float, Field(ge=0, le=1)]


class StrategySettings(Settings):
    """Which named set of slot defaults to start from (``forefed list strategies``)."""

    name: str = "spry"
    """``auto``, or nothing: ``fedavg``, or ``spry`` where ``memory`` is named or a setting that
    only makes sense with it (config/advice.py)."""
    because: str = ""
    """Why ``auto`` took it; written by the run into its record."""


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
    """Everything that decides a run. Two runs with equal configurations give equal bytes.

    A slot is one declaration here (``Slot``); ``forefed list``, ``check``, the documentation, the
    conformance suite and what travels to the sites of a deployment follow from it. Everything
    travels but what is marked SERVER_ONLY.
    """

    renamed: ClassVar[Mapping[str, str]] = {"collect": "trigger", "over_select": "oversampling"}

    name: Annotated[Name, SERVER_ONLY] = "run"
    """Folder of the run below ``out``."""
    out: Annotated[Path, SERVER_ONLY] = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    rounds: Annotated[int, Field(ge=0)] = 10
    cohort: Annotated[int, Field(ge=1)] = 10
    """Clients per round: so many (``select.kind = "uniform"``), or so many on average ("poisson");
    the answers that a round wants."""
    cohort_min: Annotated[int, Field(ge=1)] = 1
    """A round with fewer answers is abandoned: it changes nothing."""
    oversampling: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Clients sampled beyond the cohort, as a share of it (0.3: 13 for 10), against slow and lost
    ones. The round ends with the cohort's last answer; later ones are dropped and counted."""
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    """Answers that take longer are lost; makes a run depend on the machine's speed."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    workers: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], SERVER_ONLY] = 1
    """Processes that do the work of the clients of a rehearsal, with one thread each: ``auto``, as
    many as there are cores (1 on a GPU, and on other systems than Linux). 1: this one, with all its
    threads. Results are those of one thread, whatever the number."""
    strategy: Annotated[StrategySettings, BeforeValidator(lambda x: _named(x))] = StrategySettings()
    model: Annotated[ModelSettings, BeforeValidator(lambda x: _named(x))] = ModelSettings()
    adapter: Annotated[SerializeAsAny[Adapter], Slot(ADAPTERS, "which numbers are trained?")] = (
        TinyLora()
    )
    data: DataSettings = DataSettings()
    partition: Annotated[
        SerializeAsAny[Partition], Slot(PARTITIONS, "who holds which rows?"), SERVER_ONLY
    ] = Dirichlet()
    select: Annotated[SerializeAsAny[Selector], Slot(SELECTORS, "who takes part in a round?")] = (
        Uniform()
    )
    assign: Annotated[SerializeAsAny[Assign], Slot(ASSIGNS, "which units does a client train?")] = (
        Contiguous()
    )
    engine: Annotated[
        SerializeAsAny[GradientEngine], Slot(ENGINES, "how does a client get a gradient?")
    ] = Forward()
    directions: Annotated[
        SerializeAsAny[Directions], Slot(DIRECTIONS, "along which directions are slopes taken?")
    ] = Fresh()
    client: Annotated[
        SerializeAsAny[LocalTraining], Slot(CLIENTS, "what does a client do with it?")
    ] = LocalTraining()
    sharing: Annotated[
        SerializeAsAny[Sharing], Slot(SHARINGS, "which parameters travel, which stay private?")
    ] = AllShared()
    modifiers: Annotated[
        tuple[SerializeAsAny[Modifier], ...],
        Slot(MODIFIERS, "what happens to steps, updates and the aggregate?", many=True),
    ] = ()
    codec: Annotated[SerializeAsAny[Codec], Slot(CODECS, "what bytes travel up?")] = Dense()
    channel: Annotated[
        SerializeAsAny[Channel], Slot(CHANNELS, "what does the server see of a contribution?")
    ] = Plain()
    download: Annotated[SerializeAsAny[Download], Slot(DOWNLOADS, "what bytes travel down?")] = (
        DenseDownload()
    )
    trigger: Annotated[
        SerializeAsAny[Trigger], Slot(TRIGGERS, "when has the server heard enough to move?")
    ] = EveryRound()
    aggregator: Annotated[
        SerializeAsAny[Aggregator], Slot(AGGREGATORS, "how do many updates become one?")
    ] = Mean()
    server: Annotated[
        SerializeAsAny[Optimiser], Slot(OPTIMISERS, "how does the server move along it?")
    ] = Sgd()
    start: Annotated[
        SerializeAsAny[Start], Slot(STARTS, "what does the first round begin from?")
    ] = AutoStart()
    guard: Annotated[
        SerializeAsAny[Guard], Slot(GUARDS, "may a round's step be taken?"), SERVER_ONLY
    ] = AutoGuard()
    topology: Annotated[SerializeAsAny[Topology], Slot(TOPOLOGIES, "who talks to whom?")] = (
        Central()
    )
    attack: Annotated[
        SerializeAsAny[Attack], Slot(ATTACKS, "what do hostile clients send?"), SERVER_ONLY
    ] = NoAttack()
    """Simulated, to measure what the aggregator makes of it."""
    faults: Annotated[FaultSettings, SERVER_ONLY] = FaultSettings()
    evaluate: Annotated[EvaluateSettings, SERVER_ONLY] = EvaluateSettings()
    memory: Annotated[tuple[Budget, ...], BeforeValidator(lambda x: _budgets(x)), SERVER_ONLY] = ()
    """For ``engine.kind = "auto"``: one size for all clients ("2GB"), or groups
    (``[{budget = "150MB", share = 0.5}, ...]``), each client belonging to one for good."""

    @model_validator(mode="before")
    @classmethod
    def _present(cls, raw: Any) -> Any:
        # records of former runs come here as they were written
        return present(canonical(raw, cls) if isinstance(raw, dict) else raw)

    @property
    def folder(self) -> Path:
        return self.out / self.name


def _budgets(raw: Any) -> Any:
    """``memory = "2GB"`` is short for one group of all clients."""
    return ({"budget": raw},) if isinstance(raw, str | int) else raw


def _named(raw: Any) -> Any:
    """``strategy = "spry"`` is short for ``strategy.name = "spry"``."""
    return {"name": raw} if isinstance(raw, str) else raw


SLOTS: dict[str, Slot] = slots_of(Config)
"""Every slot by its place in the configuration: "codec", "data.source", "client.optimiser"."""


def chosen(config: Config, place: str) -> tuple[Choice, ...]:
    """What stands in a slot: one choice, or those of a slot that takes many."""
    there: Any = reduce(getattr, place.split("."), config)
    return there if SLOTS[place].many else (there,)


def register(entry: E) -> E:
    """Take a class into the slot whose base it derives from; a strategy, or the objective of a
    task's head, into their lists.

    A decorator. In this process the entry is then everywhere that ours are: configurations,
    ``forefed list``, records that are read back. So that other processes know it too (the command
    line, a site, a worker), a package names it as an entry point of the group ``forefed.<slot>``
    (``forefed.codec``, ``forefed.data.source``, ``forefed.strategy``, ``forefed.objective``).

    Raises:
        UserError: no slot takes such a class, its kind is taken, or it is not complete.
    """
    if isinstance(entry, Strategy):
        STRATEGIES.add(entry)
        return entry
    if isinstance(entry, type) and issubclass(entry, Objective):
        OBJECTIVES.add(entry)
        return entry
    for registry in {id(s.registry): s.registry for s in SLOTS.values()}.values():
        if isinstance(entry, type) and issubclass(entry, registry.base):
            registry.register(entry)
            return entry
    bases = sorted({s.registry.base.__name__ for s in SLOTS.values()})
    name = getattr(entry, "__qualname__", repr(entry))
    raise UserError(f"{name} fits no slot: derive it from one of {', '.join(bases)}")


DEEPEST = 20
"""Tables in one another; no setting lies as deep."""


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
    raw = merge(canonical(base or {}, Config), canonical(read_toml(file), Config) if file else {})
    for item in sets:
        raw = merge(raw, canonical(assignment(item), Config))
    unknown = [key for key in raw if key not in Config.model_fields and key not in FORMER]
    if unknown:
        raise UserError(
            f"{unknown[0]}: unknown setting; {nearest(unknown[0], Config.model_fields)}"
        )
    named = parse(StrategySettings, _named(raw.get("strategy", AUTO)), "strategy")
    if named.name == AUTO or "name" not in named.model_fields_set:
        advice = advised(raw)
        named = StrategySettings(name=advice.name, because=advice.because)
        raw = {**advice.sections, **raw, "strategy": named.model_dump()}
    method = strategy(named.name)
    sections = _rated(_walked({**method.sections, **method.own}, raw), raw)
    config = parse(Config, merge(_with_kinds(sections), raw))
    for section, kinds in method.fixed.items():
        if SLOTS[section].many:
            missing = {*kinds} - {choice.kind for choice in chosen(config, section)}
            if missing:
                raise UserError(
                    f"{section}: without '{', '.join(missing)}' it would not be {method.name} any "
                    "more; give it too"
                )
            continue
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
    kinds: dict[str, Any] = {}
    defaults = Config()
    for place, slot in SLOTS.items():
        if not slot.many:
            (default,) = chosen(defaults, place)
            kinds = merge(kinds, nested(place, {"kind": default.kind}))
    return merge(kinds, dict(sections))


def _walked(sections: dict[str, dict[str, Any]], raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A strategy's sections, where a user gives a number of directions to one that takes unit
    vectors: random ones then, as no other kind has a number."""
    given, own = raw.get("directions"), sections.get("directions", {})
    if not isinstance(given, dict) or "kind" in given or own.get("kind") != Basis.kind_name():
        return sections
    random = given.keys() & (Fresh.model_fields.keys() - Basis.model_fields.keys())
    return {**sections, "directions": {**own, "kind": Fresh.kind_name()}} if random else sections


def _rated(sections: dict[str, dict[str, Any]], raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A strategy's sections, where a user gives clients an optimiser or a rate: that is the rate,
    whatever they train against."""
    client = raw.get("client")
    given = client.get("optimiser") if isinstance(client, dict) else None
    said = isinstance(given, str) or (
        isinstance(given, dict) and bool(given.keys() & {"lr", "kind"})
    )
    if not said or "folds_rate" not in sections.get("start", {}):
        return sections
    return {**sections, "start": {**sections["start"], "folds_rate": 1.0}}


MOST_BYTES = 10_000_000
"""Of a configuration file."""


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises UserError if it cannot be read."""
    try:
        with file.open("rb") as stream:  # which may be a pipe, or a device that never ends
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{file}: more than {MOST_BYTES:,} bytes, so no configuration file")
        return tomllib.loads(data.decode("utf-8").replace("\r\n", "\n"))
    except FileNotFoundError:
        what = "configuration file" if file.suffix == ".toml" else "file"
        raise UserError(f"{file}: there is no such {what}") from None
    except IsADirectoryError:
        raise UserError(f"{file}: a folder, where a configuration file was expected") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}){_otherwise(file)}") from None
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise UserError(f"{file}: not valid TOML: {error}{_otherwise(file)}") from None
    except RecursionError:
        raise UserError(f"{file}: its tables or lists lie too deep in one another") from None


def _otherwise(file: Path) -> str:
    """What to do with a file that is called like neither a configuration nor rows."""
    from forefed.data.files import SUFFIXES

    if file.suffix == ".toml":
        return ""
    return (
        f". A configuration is a .toml file, and rows are read from {', '.join(SUFFIXES)}: save a "
        "sheet as CSV, a text a row"
    )


def assignment(item: str) -> dict[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {item!r}: write key=value, for example --set rounds=50")
    try:
        table = tomllib.loads(f"x = {text}")
    except ValueError:
        table = {"x": text.strip()}  # a bare word is a string
        if re.search(r"[\x00-\x1f\x7f]", table["x"]):
            raise UserError(
                f"--set {item!r}: a line break or another control character; one --set is one "
                "setting on one line"
            ) from None
    except RecursionError:
        raise UserError(f"--set {key.strip()}: its tables or lists lie too deep") from None
    if len(table) > 1:
        raise UserError(f"--set {item!r}: more than one setting; give each a --set of its own")
    value: Any = table["x"]
    if isinstance(value, date | time):
        value = text.strip()  # no setting is a date, but a name may look like one
    parts = [part.strip() for part in key.split(".")]
    if not all(parts) or len(parts) > DEEPEST:
        raise UserError(f"--set {item[:80]!r}: the key is no setting's name; write a.b=value")
    return nested(".".join(parts), value)


def nested(place: str, value: Any) -> dict[str, Any]:
    """The tables in which ``value`` stands at ``place`` ("a.b": {"a": {"b": value}})."""
    for part in reversed(place.split(".")):
        value = {part: value}
    return dict(value)
