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
            raise UserError(f"{self.slot} '{kind}' is unknown: {nearest(kind, self._entries)}")
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
            raise UserError(
                f"{self.slot}: give a kind, for example {self.slot}.kind = "
                f'"{self.kinds()[0]}" (one of {", ".join(self.kinds())})'
            )
        return parse(self[table["kind"]], table, self.slot)


S = TypeVar("S", bound=Settings)


def parse(model: type[S], raw: dict[str, Any], where: str = "") -> S:
    """``raw`` as settings of this class; raises UserError with one line per mistake."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(model, dict(item), where) for item in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(model: type[Settings], item: dict[str, Any], where: str) -> str:
    path = [str(part) for part in item["loc"]]
    place = ".".join([where, *path] if where else path)
    if item["type"] == "extra_forbidden":
        owner = _owner(model, path[:-1])
        return f"{place}: unknown setting; {nearest(path[-1], owner.model_fields)}"
    if item["type"] == "missing":
        return f"{place}: this setting is required"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{place}: {message} (got {item['input']!r})"


def _owner(model: type[Settings], path: list[str]) -> type[Settings]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (inspect.isclass(annotation) and issubclass(annotation, Settings)):
            break
        model = annotation
    return model
