"""What a start came to, and its two files in a run's folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch

from forefed.core.errors import UserError
from forefed.core.files import read_table, write_atomic, write_json
from forefed.core.states import keep
from forefed.core.types import Json, Params
from forefed.federation.folds import FOLDS, Folds
from forefed.federation.state import RunState
from forefed.models.bag_of_words import WORDS, Words
from forefed.run.record import AGAIN, START
from forefed.start.sums import Sums

TENSORS = "start.safetensors"


@dataclass(frozen=True)
class Begun:
    """What the start came to: the head's parameters, the sums of all clients, what the words add
    (None: nothing), and its record; and what clients train against, by group (None: that head).
    That is kept by the run's state, and by no file of the start."""

    head: Params
    total: Sums
    line: Json
    words: Words | None = None
    folds: Folds | None = None

    @property
    def notes(self) -> list[str]:
        return list(self.line["notes"])

    @property
    def finished(self) -> bool:
        """Is it solved from all rows, held-out ones too?"""
        return bool(self.line.get("all_rows"))

    def among(self, clients: Iterable[int]) -> list[int]:
        """Those of these clients that were not left out."""
        return [c for c in clients if c not in self.line.get("left_out", ())]

    def save(self, folder: Path) -> None:
        """Writes both files of a run's folder."""
        tensors = {f"head/{n}": x for n, x in self.head.items()}
        tensors |= {f"sums/{n}": x for n, x in vars(self.total).items()}
        if self.words is not None:
            tensors |= {f"words/{n}": x for n, x in self.words.packed().items()}
        write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
        write_json(folder / START, self.line)


def load_begun(folder: Path) -> Begun | None:
    """What a run began with; None: as its model came.

    Raises:
        UserError: a file of it is damaged or missing.
    """
    path = folder / TENSORS
    if not path.is_file():
        return None
    parts: dict[str, Params] = {"head": {}, "sums": {}, "words": {}}
    try:
        for name, x in safetensors.torch.load_file(path).items():
            part, _, own = name.partition("/")
            parts[part][own] = x
        if "counts" in parts["sums"]:  # of runs before there were other targets than classes
            parts["sums"]["y"] = parts["sums"].pop("counts")
            parts["sums"]["n"] = parts["sums"]["y"].sum()
        total = Sums(**parts["sums"])
        words = Words.unpacked(parts["words"]) if parts["words"] else None
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); {AGAIN}") from None
    return Begun(parts["head"], total, read_table(folder / START, AGAIN), words)


def with_start(state: RunState, begun: Begun | None) -> RunState:
    """The state with the start's head, with the words that count beside the features, and with what
    clients train against, where that is another head."""
    if begun is None:
        return state
    said = {} if begun.words is None else begun.words.packed()
    folds = {} if begun.folds is None else begun.folds.packed()
    states = keep(keep(state.states, WORDS, said), FOLDS, folds)
    return replace(state, params={**state.params, **begun.head}, states=states)
