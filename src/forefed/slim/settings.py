"""What a client's folder says, and the names of its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from forefed.core.errors import UserError
from forefed.core.philox import Distribution

SETTINGS, GRAPH, TOKENS, ROWS = "client.json", "model.onnx", "tokenizer.json", "rows.jsonl"


@dataclass(frozen=True)
class Settings:
    """A run's settings as far as such a client has a choice; what is fixed is checked where the
    folder is written (``forefed.run.slim.why_not``)."""

    codec: str
    k: int
    distribution: Distribution
    shared: bool
    clamp: float
    eps: float
    lr: float
    head_lr: float | None
    head: tuple[str, ...]
    batch_size: int
    """0: everything in one batch."""
    epochs: int
    max_steps: int | None
    group_by_length: bool
    micro_batch: int
    """Rows at a time; 0: about 512 tokens, -1: the whole batch."""
    max_length: int
    pad_id: int
    empty_id: int
    """The one token of a text that has none."""

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / SETTINGS).write_text(text, encoding="utf-8")


def read_settings(folder: Path) -> Settings:
    """Raises UserError: not there, or not what this version writes."""
    path = folder / SETTINGS
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        settings = Settings(**{**told, "head": tuple(told["head"])})
        wrong = [f.name for f in fields(Settings) if not _fits(getattr(settings, f.name), f.name)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        raise UserError(f"{path}: cannot be read ({wrong[0]}); write the client's folder again")
    return settings


def _fits(value: object, name: str) -> bool:
    if name in ("codec", "distribution"):
        return isinstance(value, str)
    if name in ("shared", "group_by_length"):
        return isinstance(value, bool)
    if name == "head":
        return isinstance(value, tuple) and all(isinstance(x, str) for x in value)
    if name in ("max_steps", "head_lr") and value is None:
        return True
    whole = name not in ("clamp", "eps", "lr", "head_lr")
    return type(value) is int or (not whole and type(value) is float)
