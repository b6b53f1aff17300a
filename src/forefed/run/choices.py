"""What there is to choose from, and what a configuration would do, as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from forefed.core.errors import UserError, nearest
from forefed.core.settings import Choice, Registry, spellings
from forefed.run.config import SLOTS, Config, chosen
from forefed.strategies import STRATEGIES, strategy

LISTS: dict[str, Registry[Any]] = {
    f"{s.registry.slot.split('.')[-1].removesuffix('s')}s": s.registry for s in SLOTS.values()
}
"""What ``forefed list`` knows beside strategies and models: every registry by its plural."""

_MODELS = (
    ("minilm", "the pretrained encoder of the extra 'minilm' (BERT, 6 layers, 22.7 M parameters)"),
    ("FOLDER", "any Hugging Face encoder or decoder saved in a local folder"),
    ("ORG/NAME", "any Hugging Face hub id (downloaded when it is not in the local cache)"),
)


def choices_table(what: str) -> Table:
    """The entries of one slot.

    Raises:
        UserError: no such list.
    """
    known = ["strategies", "models", *LISTS]
    what = next((word for word in spellings(what) if word in known), what)
    if what not in known:
        raise UserError(f"list '{what}': {nearest(what, known)}")
    table = Table(title=what, title_justify="left", box=None, header_style="bold")
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
    table.add_column("settings", style="dim")
    table.add_column("source", style="dim")
    for entry in LISTS[what]:
        table.add_row(entry.kind_name(), entry.summary(), _settings(entry), entry.source)
    return table


def _settings(entry: type[Choice]) -> str:
    fields = {name: f for name, f in entry.model_fields.items() if name != "kind"}
    return ", ".join(
        name if f.is_required() else f"{name}={_plain(f.default)}" for name, f in fields.items()
    )


def _plain(value: Any) -> str:
    return str(value.kind) if isinstance(value, Choice) else str(value)


def plan_table(config: Config) -> Table:
    """Slot by slot, what this configuration would run."""
    method = strategy(config.strategy.name)
    table = Table(title=f"{config.name}: {method.summary}", title_justify="left", box=None)
    table.add_column("slot", style="cyan", no_wrap=True)
    table.add_column("choice", no_wrap=True)
    table.add_column("settings", style="dim")
    table.add_row("model", config.model.name, f"dtype={config.model.dtype}")
    for name in SLOTS:
        if "." in name and not name.startswith("data."):
            continue  # stands in its own slot's row
        for choice in chosen(config, name):
            values = choice.model_dump(exclude={"kind"})
            settings = ", ".join(f"{k}={_inner(v)}" for k, v in values.items() if v is not None)
            table.add_row(name, choice.kind, settings)
    table.add_row("rounds", str(config.rounds), f"cohort={config.cohort}, seed={config.seed}")
    return table


def _inner(value: Any) -> str:
    if isinstance(value, dict) and "kind" in value:
        inside = ", ".join(f"{k}={v}" for k, v in value.items() if k != "kind" and v is not None)
        return f"{value['kind']}({inside})"
    return str(value)
