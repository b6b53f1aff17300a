"""Frozen weights in a file that is read page by page: a map, in the format of safetensors.

A matrix is read when it is used and let go as soon as it is dequantised, so resident memory holds
one matrix at a time; the system may keep the file's pages for the next time, and takes them back
when memory is short. While one block is used, the system is asked to read the next one, in the
direction in which the pass goes.

Source: MeBP (arXiv 2510.03425), which maps the weights of a phone's model so.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forefed.core.errors import UserError
from forefed.core.files import write_pieces

PACKED, SCALE = ".packed", ".scale"
"""Ends of a matrix's two tensors' names."""
LOOKED_UP = "looked_up"
"""Of the metadata: matrices of which single rows are read, and nothing ahead."""
HEAD = "head"
"""Of the metadata: SHA-256 of the rest of the head, so that what is read by it lies in the file."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Pages:
    """An open map. Its tensors are views of the file; ``matrices`` have two, packed and scale."""

    def __init__(self, path: Path, said: Mapping[str, str] | None = None):
        """Raises UserError: it is cut short, damaged, or says other things than ``said``."""
        self.path = path
        self.index, metadata, start = _header(path)
        for name, value in (said or {}).items():
            if metadata.get(name) != value:
                raise UserError(
                    f"model.weights: the map {path} is of other weights ({name} "
                    f"{metadata.get(name)}, not {value}); remove it, and it is made anew"
                )
        self.metadata = metadata
        self.opened = path.open("rb", buffering=0)
        # a private view: what nobody writes to stays the file's own page
        self.file = mmap.mmap(self.opened.fileno(), 0, access=mmap.ACCESS_COPY)
        self.start = start
        self.address = torch.frombuffer(self.file, dtype=torch.uint8).data_ptr()
        self.matrices = [n.removesuffix(PACKED) for n in self.index if n.endswith(PACKED)]
        self.groups = self._groups()
        self.last: int | None = None

    def tensor(self, name: str) -> Tensor:
        """A view of the file."""
        entry = self.index[name]
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        count, offset = math.prod(shape), self.start + begin
        return torch.frombuffer(self.file, dtype=dtype, count=count, offset=offset).view(shape)

    def matrix(self, name: str) -> tuple[Tensor, Tensor]:
        """The packed integers and the scales of a matrix."""
        return self.tensor(name + PACKED), self.tensor(name + SCALE)

    def rows(self, x: Tensor, which: Tensor) -> Tensor:
        """Copies of some rows of a view. They are read and not mapped: a row here and there would
        bring the large pages around each into memory."""
        size, begin = x.nbytes // len(x), x.data_ptr() - self.address
        data = bytearray(size * len(which))
        for i, row in enumerate(which.tolist()):
            self.opened.seek(begin + row * size)
            data[i * size : (i + 1) * size] = self.opened.read(size)
        return torch.frombuffer(data, dtype=x.dtype).view(len(which), *x.shape[1:])

    def holds(self, x: Tensor) -> bool:
        """Is it a view of this file?"""
        return 0 <= x.data_ptr() - self.address < len(self.file)

    def done(self, *tensors: Tensor) -> None:
        """These views' pages leave resident memory; whoever reads them again gets them again."""
        for x in tensors:
            self._advise("MADV_DONTNEED", x.data_ptr() - self.address, x.nbytes)

    def ahead(self, packed: Tensor) -> None:
        """Asks for the block after, or before, the one that this matrix belongs to."""
        at = packed.data_ptr() - self.address
        here = next((i for i, (a, b) in enumerate(self.groups) if a <= at < b), None)
        if here is None or here == self.last:
            return
        step = 1 if self.last is None or here > self.last else -1
        self.last = here
        if 0 <= here + step < len(self.groups):
            begin, end = self.groups[here + step]
            self._advise("MADV_WILLNEED", begin, end - begin)

    def _advise(self, what: str, begin: int, size: int) -> None:
        advice = getattr(mmap, what, None)  # Linux and its kin
        if advice is not None and size:
            first = begin - begin % mmap.PAGESIZE
            self.file.madvise(advice, first, begin + size - first)

    def _groups(self) -> list[tuple[int, int]]:
        """Bytes of the matrices of one block after the other, and of the output matrix."""
        found: dict[str, tuple[int, int]] = {}
        for name in self.matrices:
            if name in self.metadata.get(LOOKED_UP, "").split():
                continue
            begin, end = (self.start + x for x in self.index[name + PACKED]["data_offsets"])
            parts = name.split(".")
            number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
            block = ".".join(parts[: number + 1])
            before = found.get(block, (begin, end))
            found[block] = (min(before[0], begin), max(before[1], end))
        return list(found.values())


def write_map(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    said: Mapping[str, str],
) -> None:
    """Writes a map, one tensor after the other, whole or not at all.

    Args:
        shapes: of all tensors, wide numbers first, so that each begins where its format allows.
        tensors: in the same order.
        said: metadata.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    metadata = {**said, HEAD: _head_of(header, said)}
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterable[bytes | memoryview]:
        for (name, (dtype, shape)), (given, x) in zip(shapes.items(), tensors, strict=True):
            assert (name, dtype, shape) == (given, x.dtype, tuple(x.shape)), (name, given)
            yield x.detach().contiguous().view(-1).view(torch.uint8).numpy().data

    write_pieces(path, chain([len(text).to_bytes(8, "little"), text], pieces()))


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    size = path.stat().st_size
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(min(length, size))
    try:
        index = json.loads(text) if len(text) == length else {}
        metadata = index.pop("__metadata__", {})
        whole = metadata.pop(HEAD, None) == _head_of(index, metadata)
        ends = [entry["data_offsets"][1] for entry in index.values()] if whole else []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(path, "its head cannot be read") from None
    if not whole:
        raise _damaged(path, "its head was changed")
    expected = 8 + length + max(ends, default=0)
    if not ends or size != expected:
        raise _damaged(path, f"it has {size:,} bytes of {expected:,}")
    return index, metadata, 8 + length


def _head_of(index: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    text = json.dumps([index, dict(metadata)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"model.weights: the map {path} is cut short or damaged ({why}); remove it, and it is made "
        "anew"
    )
