"""Settings of the former version, read for one more, with a note in the log.

rule                 -> aggregator
transforms           -> modifiers
memo                 -> a modifier ("last_update", "curvature"; "none": nothing)
client.proximal      -> the modifier "proximal" with this mu
engine.shared        -> directions.shared
engine.pool          -> directions = {kind = "pool", size = ...}
engine.candidates    -> directions = {kind = "candidates", count = ...}
engine.directions, codec.directions
                     -> directions.k, or directions.kind = "basis" ("all")
engine.law, codec.law
                     -> directions.distribution, directions.head_distribution
engine.clamp         -> directions.clamp
codec.head_directions
                     -> directions.head_k
server_schedule      -> server.schedule = ["linear"], or nothing
"""

from __future__ import annotations

import logging
from typing import Any

from forefed.core.settings import Registry, SettingsError
from forefed.directions import RandomKind
from forefed.gradients import ENGINES
from forefed.wire import CODECS

FORMER = ("rule", "transforms", "memo", "server_schedule")
"""Tables and settings at the top that have another place now."""
MEMOS = ("last_update", "curvature")
OF_ENGINES = ("shared", "pool", "candidates")
"""Settings of engines that are those of directions now."""
COUNTS_OF_ENGINES = ("directions", "law", "clamp")
COUNTS_OF_CODECS = ("directions", "head_directions", "law")

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
    return _with_counts(_with_directions(found))


def _with_counts(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with what engines and codecs said of directions in the place of its own."""
    engine, codec = raw.get("engine"), raw.get("codec")
    engine = engine if isinstance(engine, dict) else {}
    codec = codec if isinstance(codec, dict) else {}
    # a package's codec or engine may have settings of these names
    gone_e = _former(engine, COUNTS_OF_ENGINES, ENGINES)
    gone_c = _former(codec, COUNTS_OF_CODECS, CODECS)
    if not gone_e and not gone_c:
        return raw
    if not isinstance(raw.get("directions", {}), dict | str) and not hasattr(
        raw["directions"], "model_dump"
    ):
        return raw  # the slot says what is wrong with it
    table = {"kind": "fresh", **_table(raw.get("directions"))}
    count = gone_e.get("directions", gone_c.get("directions"))
    walked = "directions" in gone_e or "law" in gone_e
    if "head_directions" in gone_c:
        table["head_k"] = gone_c["head_directions"]
    if "law" in gone_c:
        table["head_distribution"] = gone_c["law"]
    if count == "all":
        if table["kind"] not in ("fresh", "basis"):
            raise SettingsError(
                {
                    "engine.directions": (
                        "'all' walks along unit vectors, so there is nothing to draw for "
                        f"directions.kind = '{table['kind']}'; set directions.k instead"
                    )
                }
            )
        table = {k: v for k, v in table.items() if k not in ("k", "distribution", "clamp")}
        table["kind"] = "basis"
    else:
        said = {
            "k": count,
            "distribution": gone_e.get("law", None if walked else gone_c.get("law")),
            "clamp": gone_e.get("clamp"),
        }
        said = {k: v for k, v in said.items() if v is not None}
        if table["kind"] == "basis" and "k" in said:
            table["kind"] = "fresh"
        if table["kind"] != "basis":
            table |= said
    if table != _table(raw.get("directions")):
        _LOG.warning(
            "the number of directions, their law and clamp are settings of directions now (k or "
            "kind 'basis', distribution, clamp, head_k, head_distribution), no more of engine and "
            "codec; the former names go with the next version"
        )
    found = {**raw, "directions": table}
    if engine:
        found["engine"] = {k: v for k, v in engine.items() if k not in gone_e}
    if codec:
        found["codec"] = {k: v for k, v in codec.items() if k not in gone_c}
    return found


def _former(
    table: dict[str, Any], names: tuple[str, ...], registry: Registry[Any]
) -> dict[str, Any]:
    """Of these settings those that the entry which is named has not (any more)."""
    kind = table.get("kind")
    known = registry[kind].model_fields if kind in registry.kinds() else {}
    return {n: table[n] for n in names if n in table and n not in known}


def _with_directions(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with what engines said of directions in the place of its own."""
    engine = raw.get("engine")
    if not isinstance(engine, dict) or not engine.keys() & {*OF_ENGINES}:
        return raw
    given = {"directions": raw["directions"]} if "directions" in raw else {}
    table = _table(given.get("directions"))
    kind, shared = table.get("kind", "fresh"), table.get("shared", False)
    shared = engine.get("shared", shared)
    common = {n: x for n, x in table.items() if n in RandomKind.model_fields}
    pool, candidates = engine.get("pool"), engine.get("candidates", 1)
    if pool is not None:
        if kind != "pool":
            table = {**common, "kind": "pool"}
        table["size"] = pool
    if candidates != 1:
        if pool is not None:
            raise SettingsError(
                {"engine.candidates": "directions come either from candidates or from a pool"}
            )
        table = {**common, "kind": "candidates", "count": candidates}
    elif kind == "candidates" and "candidates" in engine:
        table = {**common, "kind": "fresh"}
    if shared or table:
        table = {"kind": "fresh", **table, "shared": shared}
    before = {"kind": "fresh", "shared": False, **_table(given.get("directions"))}
    if {**before, **table} != before or table.get("kind", "fresh") != before["kind"]:
        _LOG.warning(
            "engine.shared, pool and candidates are settings of directions now (kind 'pool' with a "
            "size, 'candidates' with a count); the former names go with the next version"
        )
        given = {"directions": table}
    engine = {k: v for k, v in engine.items() if k not in OF_ENGINES}
    return {**raw, "engine": engine, **given}


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
