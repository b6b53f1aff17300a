"""A column of texts beside columns of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import overload

from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """Texts, cut and chosen as a tensor of one dimension is; for losses that read texts."""

    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def dim(self) -> int:
        return 1

    @overload
    def __getitem__(self, rows: int) -> str: ...
    @overload
    def __getitem__(self, rows: slice | Tensor) -> Texts: ...
    def __getitem__(self, rows: int | slice | Tensor) -> str | Texts:
        if isinstance(rows, int):
            return self.values[rows]
        if isinstance(rows, slice):
            return Texts(self.values[rows])
        return Texts(tuple(self.values[i] for i in rows.tolist()))
