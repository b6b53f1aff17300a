"""What there is to choose from, and what a configuration would do, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from forefed.config.config import SLOTS, Config, chosen
from forefed.core.docstrings import attribute_docstrings
from forefed.core.errors import UserError, nearest
from forefed.core.settings import Choice, Registry, Settings, spellings
from forefed.strategies import STRATEGIES, strategy

LISTS: dict[str, Registry[Any]] = {
    f"{s.registry.slot.split('.')[-1].removesuffix('s')}s": s.registry for s in SLOTS.values()
}
"""What ``forefed list`` knows beside strategies and models: every registry by its plural."""

QUESTIONS: dict[str, str] = {
    f"{s.registry.slot.split('.')[-1].removesuffix('s')}s": s.question for s in SLOTS.values()
}

_MODELS = (
    ("minilm", "the pretrained encoder of the extra 'minilm' (BERT, 6 layers, 22.7 M parameters)"),
    ("FOLDER", "any Hugging Face encoder or decoder saved in a local folder"),
    ("hub:ORG/NAME", "a model of the Hugging Face hub (downloaded when it is not in the cache)"),
)


def choices_tables(what: str | None = None, verbose: bool = False) -> list[Table]:
    """The entries of one slot, or of everything that there is to choose.

    Args:
        verbose: a line for each setting of an entry, with its meaning.

    Raises:
        UserError: no such list.
    """
    known = ["strategies", "models", *LISTS]
    if what is None:
        return [choices_table(one, verbose) for one in known]
    found = next((word for word in spellings(what) if word in known), what)
    if found not in known:
        raise UserError(f"list '{what}': {nearest(what, known)}")
    return [choices_table(found, verbose)]


def choices_table(what: str, verbose: bool = False) -> Table:
    """The entries of one of the lists."""
    title = what if what not in QUESTIONS else f"{what}: {QUESTIONS[what]}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("name", style="cyan", no_wrap=True)
    table.add_column("what it is")
    if what == "models":
        for name, text in _MODELS:
            table.add_row(name, text)
        return table
    if what == "strategies":
        table.add_column("source", style="dim")
        for s in STRATEGIES.values():
            table.add_row(s.name, s.summary, s.source)
        return table
    if not verbose:
        table.add_column("settings", style="dim")
    table.add_column("source", style="dim")
    for entry in LISTS[what]:
        if not verbose:
            table.add_row(entry.kind_name(), entry.summary(), _settings(entry), entry.source)
            continue
        table.add_row(entry.kind_name(), entry.summary(), entry.source)
        for name, default, meaning in meanings(entry):
            table.add_row("", f"{name}{default}: {meaning}" if meaning else f"{name}{default}")
    return table


def meanings(entry: type[Choice]) -> Iterator[tuple[str, str, str]]:
    """Every setting of an entry: its name, its default and what it means."""
    told = attribute_docstrings(entry)
    for name, field in entry.model_fields.items():
        if name != "kind":
            default = "" if field.is_required() else f" = {_plain(field.default)}"
            yield name, default, " ".join(told.get(name, "").split())


def _settings(entry: type[Choice]) -> str:
    return ", ".join(f"{name}{default.replace(' ', '')}" for name, default, _ in meanings(entry))


def _plain(value: Any) -> str:
    return str(value.kind) if isinstance(value, Choice) else str(value)


def plan_table(config: Config) -> Table:
    """Section by section, what this configuration would run; nothing of it is left out."""
    method = strategy(config.strategy.name)
    table = Table(title=f"{config.name}: {method.summary}", title_justify="left", box=None)
    table.add_column("section", style="cyan", no_wrap=True)
    table.add_column("choice", overflow="fold", max_width=24)  # a model may be a long path
    table.add_column("settings", style="dim")
    plain: dict[str, Any] = {}
    for name in Config.model_fields:
        value = getattr(config, name)
        places = [place for place in SLOTS if place == name or place.startswith(f"{name}.")]
        if name in SLOTS:
            many = chosen(config, name)
            for choice in many:
                table.add_row(name, choice.kind, _said(choice.model_dump(exclude={"kind"})))
            if not many:
                table.add_row(name, "none", "")
        elif isinstance(value, Settings):
            inside = {place.split(".")[1] for place in places}
            for place in places:
                if place.count(".") == 1:
                    (choice,) = chosen(config, place)
                    table.add_row(place, choice.kind, _said(choice.model_dump(exclude={"kind"})))
            shown = value.model_dump(exclude=inside)
            table.add_row(name, str(shown.pop("name", "")), _said(shown))
        else:
            plain[name] = "none" if value is None else value
    table.add_row("run", "", _said(plain))
    return table


def _said(values: dict[str, Any]) -> str:
    return ", ".join(f"{k}={_inner(v)}" for k, v in values.items() if v is not None)


def _inner(value: Any) -> str:
    if isinstance(value, dict) and "kind" in value:
        inside = _said({k: v for k, v in value.items() if k != "kind"})
        return f"{value['kind']}({inside})"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_inner, value)) + "]"
    return str(value)
