"""Closed, typed settings, and the registries that the configuration chooses from.

A ``Choice`` is one entry of a slot: a settings class with a ``kind``, whose docstring's first
line is what ``forefed list`` prints. A ``Registry`` holds the entries of one slot. Adding an
algorithm is one file with its ``Choice`` and one line in the registry of its package.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from forefed.core.errors import UserError, nearest


class SettingsError(UserError, ValueError):
    """Mistakes in settings: what is wrong, by its place below the table that was read.

    A ValueError, so that pydantic adds the place of a table that lies within others.
    """

    def __init__(self, faults: dict[str, str], where: str = ""):
        self.faults = faults
        places = {_join(where, place): text for place, text in faults.items()}
        lines = [f"{place}: {text}" if place else text for place, text in places.items()]
        super().__init__("\n".join(lines))


class Settings(BaseModel):
    """Frozen settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Choice(Settings):
    """One entry of a slot. Subclasses give ``kind`` a Literal type and a default."""

    kind: str
    source: ClassVar[str] = ""

    @classmethod
    def summary(cls) -> str:
        return (inspect.getdoc(cls) or "").split("\n", 1)[0].strip()

    @classmethod
    def kind_name(cls) -> str:
        return str(cls.model_fields["kind"].default)


C = TypeVar("C", bound=Choice)


class Registry(Generic[C]):
    """The entries of one slot by kind."""

    def __init__(self, slot: str, entries: Iterable[type[C]]):
        self.slot = slot
        self._entries = {entry.kind_name(): entry for entry in entries}

    def __iter__(self) -> Iterator[type[C]]:
        return iter(self._entries.values())

    def __getitem__(self, kind: str) -> type[C]:
        if kind not in self._entries:
            fault = f"'{kind}' is unknown: {nearest(kind, self._entries)}"
            raise SettingsError({"": fault}, self.slot)
        return self._entries[kind]

    def kinds(self) -> list[str]:
        return list(self._entries)

    def parse(self, raw: Any) -> C:
        """A ``Choice`` from a table (``{kind = "x", ...}``), a bare kind, or a Choice itself.

        Raises:
            UserError: unknown kind or key, or a value that does not fit; names the place.
        """
        if isinstance(raw, Choice):
            return raw  # type: ignore[return-value]
        table = {"kind": raw} if isinstance(raw, str) else raw
        if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
            fault = f'give a kind, for example kind = "{self.kinds()[0]}"'
            raise SettingsError({"": f"{fault} (one of {', '.join(self.kinds())})"}, self.slot)
        return parse(self[table["kind"]], table, self.slot)


S = TypeVar("S", bound=Settings)


def parse(model: type[S], raw: dict[str, Any], where: str = "") -> S:
    """``raw`` as settings of this class; raises UserError with one line per mistake."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(_faults(model, error), where) from None


def _faults(model: type[Settings], error: ValidationError) -> dict[str, str]:
    """What is wrong by place; a value that fits none of several types is one mistake."""
    faults: dict[str, str] = {}
    for item in error.errors():
        unknown = item["type"] == "extra_forbidden"
        owner, path = _walk(model, item["loc"][:-1] if unknown else item["loc"])
        place = ".".join(path)
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, SettingsError):
            faults |= {_join(place, below): text for below, text in inner.faults.items()}
        elif unknown:
            name = str(item["loc"][-1])
            text = f"unknown setting; {nearest(name, owner.model_fields)}"
            faults[_join(place, name)] = text
        elif item["type"] == "missing":
            faults[place] = "this setting is required"
        else:
            message = str(item["msg"]).removeprefix("Value error, ")
            text = f"{message} (got {item['input']!r})"
            faults[place] = f"{faults[place]}; or {text}" if place in faults else text
    return faults


def _walk(model: type[Settings], loc: tuple[int | str, ...]) -> tuple[type[Settings], list[str]]:
    """The innermost settings on the way, and the way without pydantic's names of union types."""
    owner: type[Settings] | None = model
    path = []
    for part in loc:
        if isinstance(part, int):
            path.append(str(part))
        elif owner is not None and part in owner.model_fields:
            path.append(part)
            annotation: Any = owner.model_fields[part].annotation
            nested = inspect.isclass(annotation) and issubclass(annotation, Settings)
            owner = annotation if nested else None
            model = owner or model
    return model, path


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
