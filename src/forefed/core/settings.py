"""Closed, typed settings, the registries that the configuration chooses from, and its slots.

A ``Choice`` is one entry of a slot: a settings class with a ``kind``, whose docstring's first
line is what ``forefed list`` prints. A ``Registry`` holds the entries of one slot. A ``Slot`` in
the annotation of a field declares it, once, for everything that asks for slots:

    codec: Annotated[SerializeAsAny[Codec], Slot(CODECS, "what bytes travel up?")] = Dense()

Adding an algorithm is one file with its ``Choice`` and one line in the registry of its package;
adding a slot is one such declaration.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from forefed.core.docstrings import attribute_docstrings
from forefed.core.errors import UserError, nearest
from forefed.core.plugins import Entries

_LOG = logging.getLogger(__name__)


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

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of settings, which are read for one more version, with a note."""

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for the number 1, and an empty path for the current folder."""
        if isinstance(value, bool) or value == "":
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
                raise ValueError("a number belongs here, not true or false")
            if isinstance(value, str) and Path in kinds:
                raise ValueError("a path belongs here, not an empty text")
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """With what every setting means (``core/docstrings.py``)."""
        found = handler.resolve_ref_schema(handler(schema))
        for name, text in attribute_docstrings(cls).items():
            if name in found["properties"]:
                found["properties"][name].setdefault("description", text)
        return found


def _kinds(annotation: Any) -> set[Any]:
    """The types that a setting may have, within unions and ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation} if isinstance(annotation, type) else set()


class Choice(Settings):
    """One entry of a slot. Subclasses give ``kind`` a Literal type and a default."""

    kind: str
    source: ClassVar[str] = ""

    def conflicts(self, config: Any) -> Iterator[str]:
        """What of the whole configuration (``forefed.Config``) this choice cannot work with.

        Each is a sentence that begins with the setting and says the remedy; all of them are told
        before anything loads.
        """
        return iter(())

    @classmethod
    def summary(cls) -> str:
        return (inspect.getdoc(cls) or "").split("\n", 1)[0].strip()

    @classmethod
    def kind_name(cls) -> str:
        return str(cls.model_fields["kind"].default)


C = TypeVar("C", bound=Choice)


class Registry(Generic[C]):
    """The entries of one slot by kind: ours, registered ones, those of installed packages."""

    def __init__(self, slot: str, entries: Iterable[type[C]]):
        self.slot = slot
        own = list(entries)
        self.base: type[Choice] = _base(own[0])
        self._entries: Entries[type[C]] = Entries(slot, own, self._checked, self._taken_in)

    def __iter__(self) -> Iterator[type[C]]:
        return iter(self._entries.values())

    def __getitem__(self, kind: str) -> type[C]:
        for spelling in spellings(kind):
            if spelling in self._entries:
                return self._entries[spelling]
        fault = f"'{kind}' is unknown: {nearest(kind, self._entries)}"
        raise SettingsError({"": fault}, self.slot)

    def kinds(self) -> list[str]:
        return list(self._entries)

    def register(self, entry: type[C]) -> type[C]:
        """Take an entry in, for this process (a decorator). A package offers its own for every
        process by an entry point of the group ``forefed.<slot>``.

        Raises:
            UserError: its kind is taken, or it cannot be an entry of this slot.
        """
        return self._entries.add(entry)

    def parse(self, raw: Any) -> C:
        """A ``Choice`` from a table (``{kind = "x", ...}``), a bare kind, or a Choice itself.

        Raises:
            UserError: unknown kind or key, or a value that does not fit; names the place.
        """
        if isinstance(raw, Choice):
            if self._entries.get(raw.kind) is not type(raw):
                name = type(raw).__qualname__
                fault = (
                    f"{name} could not be read back from a record; register it first "
                    f"(forefed.register({name})), or offer it by the entry points "
                    f"'forefed.{self.slot}'"
                )
                raise SettingsError({"": fault}, self.slot)
            return raw
        table = {"kind": raw} if isinstance(raw, str) else raw
        if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
            fault = f'give a kind, for example kind = "{self.kinds()[0]}"'
            raise SettingsError({"": f"{fault} (one of {', '.join(self.kinds())})"}, self.slot)
        entry = self[table["kind"]]
        return parse(entry, {**table, "kind": entry.kind_name()}, self.slot)

    def _checked(self, entry: type[C]) -> str:
        """The kind of what may be an entry.

        Raises:
            UserError: another class, no kind of its own, no words that say what it is.
        """
        name, base = getattr(entry, "__qualname__", repr(entry)), self.base.__name__
        if not (isinstance(entry, type) and issubclass(entry, self.base)):
            raise UserError(f"{self.slot}: {name} is no {base}; derive it from forefed's {base}")
        if inspect.isabstract(entry):
            missing = ", ".join(sorted(entry.__abstractmethods__))
            raise UserError(f"{self.slot}: {name} lacks {missing}")
        kind = entry.model_fields["kind"].default
        if not isinstance(kind, str):
            raise UserError(f'{self.slot}: {name} needs a kind: Literal["x"] = "x"')
        if not (entry.__doc__ or "").strip():
            raise UserError(f"{self.slot}: {name} needs a docstring; 'forefed list' shows its line")
        return kind

    def _taken_in(self, entry: type[C]) -> None:
        """For registries that keep more of an entry than its kind."""


def _base(entry: type[Choice]) -> type[Choice]:
    """The slot's own class: what stands right below ``Choice``."""
    return next(c for c in reversed(entry.__mro__) if issubclass(c, Choice) and c is not Choice)


def spellings(word: str) -> Iterator[str]:
    """A word, and its other spellings: optimizer and optimiser, quantized and quantised."""
    yield word
    for here, there in (("iz", "is"), ("is", "iz")):
        if here in word:
            yield word.replace(here, there)


@dataclass(frozen=True)
class Slot:
    """Declares a field of settings as a slot: what may stand there, and what it decides.

    ``many``: the field is a tuple of choices, applied in order.
    """

    registry: Registry[Any]
    question: str
    many: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))

    def read(self, raw: Any) -> Any:
        """The choice (or choices) that ``raw`` stands for."""
        if not self.many:
            return self.registry.parse(raw)
        if not isinstance(raw, list | tuple):
            fault = f'give a list, for example [{{kind = "{self.registry.kinds()[0]}"}}]'
            raise SettingsError({"": fault})
        return tuple(self.registry.parse(one) for one in raw)


class ServerOnly:
    """Marks a setting that is the server's alone and does not travel to the sites of a run."""


SERVER_ONLY = ServerOnly()


def travelling(settings: Settings) -> dict[str, Any]:
    """All settings but those marked SERVER_ONLY, in these and in the tables below, as JSON."""
    told: dict[str, Any] = {}
    whole = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        if SERVER_ONLY in field.metadata:
            continue
        value = getattr(settings, name)
        told[name] = travelling(value) if isinstance(value, Settings) else whole[name]
    return told


def slot_of(field: FieldInfo) -> Slot | None:
    """The slot that a field declares."""
    return next((m for m in field.metadata if isinstance(m, Slot)), None)


def slots_of(settings: type[Settings], below: str = "") -> dict[str, Slot]:
    """Every slot of these settings and of the tables in them, by its place ("data.source").

    Of a slot's own slots (an optimiser's of a client's loop) those of its default stand here.
    """
    found: dict[str, Slot] = {}
    for name, field in settings.model_fields.items():
        place, slot = _join(below, name), slot_of(field)
        if slot is not None:
            found[place] = slot
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            found |= slots_of(type(default), place)
    return found


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
            text = f"{message} (got {_short(item['input'])})"
            faults[place] = f"{faults[place]}; or {text}" if place in faults else text
    return faults


def _short(value: Any) -> str:
    """A value as it is shown in a message."""
    try:
        shown = repr(value)
    except ValueError:
        return "a number of very many digits"
    return shown if len(shown) <= 100 else f"{shown[:80]}..."


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


def canonical(raw: dict[str, Any], model: type[Settings], where: str = "") -> dict[str, Any]:
    """A table with every setting under its present name: the other spelling (optimizer, quantize)
    and former names are read, the latter with a note in the log."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        name, place = _present_name(key, (model,), where), _join(where, key)
        if name in raw and name != key:
            raise SettingsError(
                {place: f"is '{name}' in other words, which is given too; drop one"}
            )
        found[name] = _canonical_value(value, model.model_fields.get(name), _join(where, name))
    return found


def _canonical_value(value: Any, field: FieldInfo | None, where: str) -> Any:
    if field is None or not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [_canonical_value(one, field, where) for one in value]
    slot = slot_of(field)
    if slot is None:
        default = field.get_default(call_default_factory=True)
        return canonical(value, type(default), where) if isinstance(default, Settings) else value
    kind = value.get("kind")
    entries = tuple(e for e in slot.registry if e.kind_name() in spellings(str(kind))) or tuple(
        slot.registry
    )
    named = {_present_name(key, entries, where): inner for key, inner in value.items()}
    for name, inner in named.items():
        fields = [e.model_fields[name] for e in entries if name in e.model_fields]
        named[name] = _canonical_value(inner, fields[0] if fields else None, _join(where, name))
    return named


def _present_name(key: str, models: tuple[type[Settings], ...], where: str) -> str:
    """What a setting of one of these classes is called now; a former name is noted in the log."""
    for model in models:
        for spelling in spellings(model.renamed.get(key, key)):
            if spelling in model.model_fields:
                if key in model.renamed:
                    said = "%s is called %s now; the former name goes with the next version"
                    _LOG.warning(said, _join(where, key), spelling)
                return spelling
    return key


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
