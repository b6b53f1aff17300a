"""Where the hidden states of a frozen prefix are kept: memory, a disk, or a disk for later runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from forefed.core import trees
from forefed.core.sizes import format_bytes
from forefed.core.types import Params


class PrefixCache:
    """Hidden states [L, H] by depth and example, in memory or in files below a folder.

    Stands for the client's own memory or disk, so it changes in place. At ``limit_bytes``, or when
    the disk is full, nothing more is stored, ``stopped`` says why, and everything goes on.
    ``reused`` and ``computed`` count examples.

    Args:
        folder: where the files are; they go with the cache, unless they are kept.
        kept: for files that later runs find again: the name under which those of a depth are
            kept, which must differ wherever the hidden states would; None: that depth is not kept.
    """

    def __init__(
        self,
        limit_bytes: int,
        folder: Path | None = None,
        kept: Callable[[int], str | None] = lambda depth: None,
    ):
        self.limit_bytes = limit_bytes
        self.stored_bytes = 0
        self.stopped = ""
        self.reused = 0
        self.computed = 0
        self._entries: dict[int, dict[bytes, Tensor | Path]] = {}  # by depth, by example
        self._digests: dict[int, str] = {}
        self._seen: dict[int, tuple[Tensor, ...]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._shelves: dict[int, Path | None] = {}  # of what is kept, by depth
        self._kept, self._root = kept, folder
        if folder is not None:  # its own folder, removed with the cache
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="prefix-")

    def get(self, depth: int, example: bytes) -> Tensor | None:
        entry = self._entries.get(depth, {}).get(example)
        shelf = self._shelf(depth)
        if entry is None and shelf is not None:
            entry = shelf / example.hex()
        found = _read(entry) if isinstance(entry, Path) else entry
        self.reused += found is not None
        return found

    def put(self, depth: int, example: bytes, hidden_LH: Tensor) -> None:
        self.computed += 1
        if self.stopped:
            return
        if self.stored_bytes + hidden_LH.nbytes > self.limit_bytes:
            self.stopped = f"the limit of {format_bytes(self.limit_bytes)} is reached"
            return
        entry: Tensor | Path = hidden_LH.cpu()
        shelf = self._shelf(depth)
        if self._folder is not None:
            path = Path(self._folder.name) / f"{depth}-{example.hex()}"
            try:
                entry = _write(path, hidden_LH)
                if shelf is not None:  # complete before it has its name: other runs read it, too
                    entry = path.replace(shelf / example.hex())
            except OSError as error:
                self.stopped = f"the folder cannot be written ({error.strerror})"
                return
        if shelf is None:
            self._entries.setdefault(depth, {})[example] = entry
        self.stored_bytes += _size(entry)

    def _shelf(self, depth: int) -> Path | None:
        """The folder of what is kept; what earlier runs left there counts."""
        if depth not in self._shelves:
            name = self._kept(depth)
            shelf = self._root / name if self._root is not None and name is not None else None
            if shelf is not None:
                shelf.mkdir(parents=True, exist_ok=True)
                self.stored_bytes += sum(file.stat().st_size for file in os.scandir(shelf))
            self._shelves[depth] = shelf
        return self._shelves[depth]

    def valid_for(self, params: Params, before: Sequence[tuple[str, ...]], depth: int) -> None:
        """Forgets entries whose parameters have changed; ``before``: their names by depth."""
        tensors = tuple(params[name] for name in before[depth])
        seen = self._seen.get(depth)
        if seen is not None and all(a is b for a, b in zip(seen, tensors, strict=True)):
            return  # tensors are never changed in place, so the same object is the same value
        for other in {*self._digests, depth}:
            digest = trees.digest(trees.pick(params, before[other]))
            if self._digests.get(other, digest) != digest:
                self._forget(other)
            self._digests[other] = digest
            self._seen[other] = tuple(params[name] for name in before[other])

    def _forget(self, depth: int) -> None:
        for entry in self._entries.pop(depth, {}).values():
            self.stored_bytes -= _size(entry)
            if isinstance(entry, Path):
                entry.unlink()
        self.stopped = ""


def _write(path: Path, hidden_LH: Tensor) -> Path:
    from safetensors.torch import save

    path.write_bytes(save({"x": hidden_LH.cpu()}))  # read only after it is complete
    return path


def _read(path: Path) -> Tensor | None:
    """What was kept; None where nothing was, or what a power cut damaged: it is computed anew."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["x"]
    except (FileNotFoundError, SafetensorError):
        return None


def _size(entry: Tensor | Path) -> int:
    return entry.stat().st_size if isinstance(entry, Path) else entry.nbytes
