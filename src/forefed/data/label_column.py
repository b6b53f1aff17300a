"""A label column as it stands in a table: its different values, and the names that they are."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import UserError
from forefed.data.rows import Rows

WHERE = "data.task.label"
_MISSING = ("", "nan", "null", "<na>")
INTEGRAL = re.compile(r"([+-]?)(0|[1-9][0-9]{0,17})(\.0*)?")


@dataclass(frozen=True)
class Labels:
    """One table's labels: ``codes`` [N] point into the different values; ``names`` are theirs, None
    where a value is none. ``number``: what a message calls a row, by its position."""

    place: str
    codes: NDArray[np.int64]
    values: list[Any]
    names: list[str | None]
    number: Callable[[int], int]

    def occurring(self) -> dict[str, int]:
        """Rows by class name."""
        counts = np.bincount(self.codes, minlength=len(self.names))
        found: dict[str, int] = {}
        for name, n in zip(self.names, counts.tolist(), strict=True):
            if name is not None and n:
                found[name] = found.get(name, 0) + n
        return found

    def first(self, name: str | None) -> int:
        """The number of the first row with this name, in the source, from 1."""
        codes = [c for c, n in enumerate(self.names) if n == name]
        return self.number(int(np.flatnonzero(np.isin(self.codes, codes))[0]))


def read_labels(place: str, rows: Rows, column: str) -> Labels:
    """The labels of one table.

    Raises:
        UserError: a column of lists, objects or bytes.
    """
    codes, values = coded(rows, column, WHERE)
    typed = rows.classes.get(column)
    if typed is None:
        return Labels(place, codes, values, [name_of(v) for v in values], rows.number)
    inside = [v if isinstance(v, int) and 0 <= v < len(typed) else None for v in values]
    names = [None if v is None else typed[v] for v in inside]
    return Labels(place, codes, values, names, rows.number)


def coded(rows: Rows, column: str, where: str) -> tuple[NDArray[np.int64], list[Any]]:
    """The different values of a column, and which of them each row has, [N]."""
    import pyarrow
    import pyarrow.compute as pc
    import pyarrow.types as types

    array = rows.array(column)
    kind = array.type.value_type if types.is_dictionary(array.type) else array.type
    if types.is_list(kind) or types.is_large_list(kind):
        raise UserError(
            f"{where}: column '{column}' holds lists; for texts with several labels set data.task "
            '= "multilabel"'
        )
    if types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        raise UserError(f"{where}: column '{column}' holds {kind}, which are no classes")
    found = pc.dictionary_encode(
        array if array.type == kind else array.cast(kind),
        null_encoding="encode",
        memory_pool=pyarrow.system_memory_pool(),  # the default one keeps what is given back
    ).chunks
    codes = np.concatenate([np.zeros(0, np.int64), *(_indices(chunk) for chunk in found)])
    # pyarrow gives every chunk the values of all
    return codes, found[-1].dictionary.to_pylist() if found else []


def _indices(chunk: Any) -> NDArray[np.int32]:
    """The indices of a dictionary array that has no nulls, in its own memory."""
    indices = chunk.indices
    if not len(indices):
        return np.zeros(0, np.int32)
    return np.frombuffer(indices.buffers()[1], np.int32)[indices.offset :][: len(indices)]


def name_of(value: Any) -> str | None:
    """The name that a value is; None: no value is given."""
    if value is None:
        return None
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            return None
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else str(value)
    text = str(value).strip()
    if text.casefold() in _MISSING:
        return None
    if whole := INTEGRAL.fullmatch(text):
        return str(int(whole[1] + whole[2]))
    return text


def shown(name: str) -> str:
    """A name of any length, for a message."""
    return name if len(name) <= 60 else name[:57] + "..."


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(f"'{shown(n)}'" for n in names[:5]) + more


def fold(name: str) -> str:
    """What is left of a name when its spelling does not matter."""
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return str(int(plain)) if plain.isdecimal() and len(plain) < 1000 else plain


def all_occurring(found: Sequence[Labels]) -> dict[str, int]:
    occurring: dict[str, int] = {}
    for labels in found:
        for name, n in labels.occurring().items():
            occurring[name] = occurring.get(name, 0) + n
    return occurring
