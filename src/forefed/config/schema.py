"""The JSON Schema of a configuration file, from the settings themselves.

Editors that know TOML (taplo, Even Better TOML) complete and explain settings by it. It is a little
looser than ``configure``: which settings exclude each other, no schema says.
"""

from __future__ import annotations

from typing import Any, cast

from forefed.config.config import Config
from forefed.core.settings import Settings, slot_of
from forefed.core.types import Json
from forefed.strategies import STRATEGIES


def config_schema() -> Json:
    """Every setting with its type, default and meaning; every slot with every kind's own."""
    schema = settings_schema(Config)
    named = schema["properties"]
    named["strategy"] = _or_word(named["strategy"], sorted(STRATEGIES))
    named["model"] = _or_word(named["model"])
    named["memory"] = {"anyOf": [{"type": ["string", "integer"]}, named["memory"]]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **schema,
        "title": "Forefed: the configuration of a run",
    }


def settings_schema(model: type[Settings]) -> Json:
    """The schema of one settings class, with those of its slots and tables within."""
    whole = model.model_json_schema()
    known = whole.pop("$defs", {})
    schema = cast(Json, _inlined(whole, known))
    for name, field in model.model_fields.items():
        there, slot, default = schema["properties"].get(name), slot_of(field), field.default
        if there is None:
            continue
        if slot is not None:
            one = {"anyOf": [*map(settings_schema, slot.registry), _words(slot.registry.kinds())]}
            what: Json = {"type": "array", "items": one} if slot.many else one
        elif isinstance(default, Settings):
            what = settings_schema(type(default))
        else:
            continue
        meaning = there.get("description") or (slot.question if slot else None)
        schema["properties"][name] = {**what, **({"description": meaning} if meaning else {})}
    schema.pop("required", None)  # a strategy may bring what a file leaves out
    return schema


def _or_word(schema: Json, words: list[str] | None = None) -> Json:
    return {"anyOf": [_words(words) if words else {"type": "string"}, schema]}


def _words(words: list[str]) -> Json:
    return {"type": "string", "enum": words}


def _inlined(value: Any, known: Json) -> Any:
    """The same without references: every schema stands where it is meant."""
    if isinstance(value, list):
        return [_inlined(one, known) for one in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return _inlined({**known[name], **{k: v for k, v in value.items() if k != "$ref"}}, known)
    return {key: _inlined(inner, known) for key, inner in value.items()}
