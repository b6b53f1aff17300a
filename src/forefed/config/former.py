"""Settings of the former version, read for one more, with a note in the log.

rule                 -> aggregator
transforms           -> modifiers
memo                 -> a modifier ("last_update", "curvature"; "none": nothing)
client.proximal      -> the modifier "proximal" with this mu
engine.shared        -> directions.shared
engine.pool          -> directions = {kind = "pool", size = ...}
engine.candidates    -> directions = {kind = "candidates", count = ...}
server_schedule      -> server.schedule = ["linear"], or nothing
"""

from __future__ import annotations

import logging
from typing import Any

from forefed.core.settings import SettingsError

FORMER = ("rule", "transforms", "memo", "server_schedule")
"""Tables and settings at the top that have another place now."""
MEMOS = ("last_update", "curvature")
OF_ENGINES = ("shared", "pool", "candidates")
"""Settings of engines that are those of directions now."""

_LOG = logging.getLogger(__name__)


def present(raw: Any) -> Any:
    """A whole configuration with every setting at its present place.

    Raises:
        SettingsError: a former setting of a form that it never had.
    """
    if not isinstance(raw, dict):
        return raw
    found = {k: v for k, v in raw.items() if k not in FORMER}
    modifiers = found.get("modifiers", ())
    if not isinstance(modifiers, list | tuple):
        return {**raw}  # the slot says what is wrong with it
    modifiers = [{"kind": m} if isinstance(m, str) else m for m in modifiers]
    if "rule" in raw:
        _note("rule", "aggregator")
        found["aggregator"] = {**_table(found.get("aggregator")), **_table(raw["rule"])}
    if "transforms" in raw:
        if not isinstance(raw["transforms"], list | tuple):
            raise SettingsError({"transforms": "give a list; it is called modifiers now"})
        if raw["transforms"]:
            _note("transforms", "modifiers")
        for one in raw["transforms"]:
            modifiers = [*modifiers, {"kind": one} if isinstance(one, str) else one]
    if "memo" in raw:
        memo = _table(raw["memo"])
        there = next((m["kind"] for m in map(_table, modifiers) if m.get("kind") in MEMOS), "none")
        kind = memo.pop("kind", there)
        if kind != "none":
            _note("memo", f"the modifier '{kind}'")
            modifiers = _with(modifiers, kind, memo)
    client = found.get("client")
    if isinstance(client, dict) and "proximal" in client:
        mu = client["proximal"]
        found["client"] = {k: v for k, v in client.items() if k != "proximal"}
        if mu or any(_table(m).get("kind") == "proximal" for m in modifiers):
            _note("client.proximal", "the modifier 'proximal'")
            modifiers = _with(modifiers, "proximal", {"mu": mu})
    if modifiers:
        found["modifiers"] = modifiers
    if "server_schedule" in raw:
        found["server"] = _with_schedule(found.get("server"), raw["server_schedule"])
    return _with_directions(found)


def _with_directions(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with what engines said of directions in the place of its own."""
    engine = raw.get("engine")
    if not isinstance(engine, dict) or not engine.keys() & {*OF_ENGINES}:
        return raw
    given = {"directions": raw["directions"]} if "directions" in raw else {}
    table = _table(given.get("directions"))
    kind, shared = table.get("kind", "fresh"), table.get("shared", False)
    shared = engine.get("shared", shared)
    pool, candidates = engine.get("pool"), engine.get("candidates", 1)
    if pool is not None:
        if kind != "pool":
            table = {"kind": "pool"}
        table["size"] = pool
    if candidates != 1:
        if pool is not None:
            raise SettingsError(
                {"engine.candidates": "directions come either from candidates or from a pool"}
            )
        table = {"kind": "candidates", "count": candidates}
    elif kind == "candidates" and "candidates" in engine:
        table = {"kind": "fresh"}
    if shared or table:
        table = {"kind": "fresh", **table, "shared": shared}
    before = {"kind": "fresh", "shared": False, **_table(given.get("directions"))}
    if {**before, **table} != before or table.get("kind", "fresh") != before["kind"]:
        _LOG.warning(
            "engine.shared, pool and candidates are settings of directions now (kind 'pool' with a "
            "size, 'candidates' with a count); the former names go with the next version"
        )
        given = {"directions": table}
    return {**raw, "engine": present_engine(engine), **given}


def present_engine(table: dict[str, Any]) -> dict[str, Any]:
    """An engine's settings without those that are not an engine's any more."""
    return {k: v for k, v in table.items() if k not in OF_ENGINES}


def _with_schedule(server: Any, former: Any) -> dict[str, Any]:
    """The server's optimiser with what ``server_schedule`` was."""
    if former not in ("constant", "linear"):
        raise SettingsError({"server_schedule": "was 'constant' or 'linear'"})
    pieces = [{"kind": "linear"}] if former == "linear" else []
    if pieces:
        _note("server_schedule", 'server.schedule = ["linear"]')
    return {"kind": "sgd", **_table(server), "schedule": pieces}


def _with(modifiers: list[Any], kind: str, settings: dict[str, Any]) -> list[Any]:
    """The list with this modifier in it, and these settings of it."""
    if all(_table(m).get("kind") != kind for m in modifiers):
        return [*modifiers, {"kind": kind, **settings}]
    return [{**_table(m), **settings} if _table(m).get("kind") == kind else m for m in modifiers]


def _table(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, dict):
        return dict(value)
    return value.model_dump() if hasattr(value, "model_dump") else {}


def _note(former: str, now: str) -> None:
    _LOG.warning("%s is %s now; the former name goes with the next version", former, now)
