"""Which strategy a configuration without one takes, and why (docs/RESULTS.md, "What follows the
start").

After the solved head the steps of no strategy were shown to be better than another's, so what
decides is what they cost: FedAvg's backward passes, where nothing says that they do not fit; SPRY,
where memory is named, or a setting that only makes sense with it. What a user sets himself wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from forefed.core.errors import UserError
from forefed.core.sizes import format_bytes, parse_bytes
from forefed.wire import CODECS

AUTO = "auto"
"""The strategy's name that leaves the choice to ``advised``."""
EXACT = ("backprop", "checkpointed", "structured", "exact_head", "sam", AUTO)
"""Engines that have a whole gradient of many numbers, or are chosen by measuring."""


@dataclass(frozen=True)
class Advice:
    """A strategy's name, why it is taken, and settings that come with it."""

    name: str
    because: str
    sections: dict[str, Any] = field(default_factory=dict)


def advised(raw: dict[str, Any]) -> Advice:
    """For the settings that a user gave, without a strategy's.

    Args:
        raw: as a configuration file has them; what is wrong in them is said elsewhere.
    """
    memory = raw.get("memory")
    if memory:
        named = smallest(memory)
        said = f"memory = {format_bytes(named)} is named" if named else "memory is named"
        because = (
            f"{said}, so clients train few numbers at a time, with an exact gradient by whatever "
            "engine fits (engine.kind = 'auto'; 'forefed plan' shows what that is)"
        )
        return Advice("spry", because, {} if "engine" in raw else {"engine": {"kind": AUTO}})
    for place in ("engine", "codec", "assign", "adapter"):
        kind = _kind(place, raw.get(place))
        if kind is not None and _of_few(place, kind):
            because = f"{place}.kind = '{kind}' is set, which wants few numbers a client"
            return Advice("spry", because)
    if _walks(raw.get("directions")):
        return Advice("spry", "directions are set, along which clients walk")
    return Advice(
        "fedavg",
        "no memory is named in which a backward pass would not fit, and after the solved head no "
        "strategy's steps were shown to be better; FedAvg's take the fewest passes",
    )


def taken(config: Any) -> list[str]:
    """The one line that says why a configuration's strategy and engine were taken; nothing where
    the user has named the strategy."""
    because = config.strategy.because
    if not because:
        return []
    return [f"strategy {config.strategy.name}, engine {config.engine.kind}: {because}"]


def smallest(memory: Any) -> int | None:
    """The tightest budget in bytes; None: it is no size."""
    groups = memory if isinstance(memory, list | tuple) else [memory]
    try:
        return min(parse_bytes(_budget(group), "memory") for group in groups)
    except UserError:
        return None


def _budget(group: Any) -> Any:
    if isinstance(group, dict):
        return group.get("budget")
    return getattr(group, "budget", group)


def _of_few(place: str, kind: str) -> bool:
    """Is this choice made for strategies that train few numbers a client?"""
    if place == "engine":
        return kind not in EXACT
    if place == "codec":
        return kind in CODECS.kinds() and CODECS[kind].payload == "projections"
    return kind in {"assign": ("contiguous", "cyclic"), "adapter": ("tinylora",)}[place]


def _walks(section: Any) -> bool:
    """Do these settings of directions say more than whose they are?"""
    if isinstance(section, str):
        return True
    return isinstance(section, dict) and bool(section.keys() - {"shared"})


def _kind(place: str, section: Any) -> str | None:
    """The kind that a section has, or that its settings belong to."""
    if isinstance(section, str) or section is None:
        return section
    if not isinstance(section, dict):
        return getattr(section, "kind", None)
    if "kind" in section:
        return str(section["kind"])
    own = {"engine": ("directions", "law", "head"), "adapter": ("u",), "assign": ("replicas",)}
    if not section.keys() & {*own.get(place, ())}:
        return None
    return {"engine": "forward", "adapter": "tinylora", "assign": "contiguous"}[place]
