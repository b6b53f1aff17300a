"""Token arrays on disk: kept under the digest of what they are made of, memory-mapped when read."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forefed.core.files import rename_folder
from forefed.core.types import Json
from forefed.data.examples import Examples, Indices

if TYPE_CHECKING:
    from forefed.data.encoding import Texts

_FORMAT = "forefed-tokens-3"


@dataclass(frozen=True)
class Tokenised:
    """``kept`` holds the position of every example among the texts; ``counts`` tells how many texts
    were blank ("empty"), cut at the maximum length ("truncated") or left out ("dropped"), and how
    many questions are there whose answer is cut off ("out_of_reach")."""

    examples: Examples
    kept: Indices
    counts: dict[str, int]
    digest: str


def digest_of_request(texts: Texts, tokenizer: Any, max_length: int, testing: bool) -> str:
    import tokenizers

    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("truncation"), state.pop("padding")  # left over from the last call
    else:
        state = sorted(tokenizer.get_vocab().items())
    head: list[Any] = [
        _FORMAT,
        tokenizers.__version__,
        type(tokenizer).__name__,
        tokenizer.special_tokens_map,
        tokenizer.model_input_names,
        state,
        max_length,
        texts.labels is None,
        type(texts).__name__,
        testing and texts.tests_keep_more,
    ]
    form = texts.form(tokenizer)
    head += [] if form is None else [form]
    digest = hashlib.sha256(json.dumps(head, default=str).encode())
    for column in (texts.first, texts.second or []):
        digest.update(f"\0{len(column)}\0".encode())
        for text in column:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    if texts.labels is not None:
        digest.update(texts.labels.astype(texts.labels.dtype.newbyteorder("<")).tobytes())
        digest.update(f"{texts.labels.shape[1:]}".encode() if texts.labels.ndim > 1 else b"")
    return digest.hexdigest()[:32]


def _arrays(examples: Examples) -> dict[str, NDArray[Any]]:
    names = ("tokens", "types", "offsets", "labels", "n_bytes", "chars", "learned")
    return {n: x for n in names if (x := getattr(examples, n)) is not None}


def digest_of_arrays(examples: Examples) -> str:
    digest = hashlib.sha256(f"{examples.pad_id} {examples.causal}".encode())
    for name, array in _arrays(examples).items():
        digest.update(f"{name} {array.dtype.str} {len(array)}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save(tokenised: Tokenised, folder: Path) -> None:
    """Build beside ``folder``, then rename: a kill leaves nothing that looks finished."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, array in {**_arrays(tokenised.examples), "kept": tokenised.kept}.items():
            np.save(building / f"{name}.npy", array, allow_pickle=False)
        meta: Json = {
            "pad_id": tokenised.examples.pad_id,
            "causal": tokenised.examples.causal,
            "counts": tokenised.counts,
            "digest": tokenised.digest,
        }
        (building / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            rename_folder(building, folder)
        except OSError:  # there is one: of another process, or damaged
            if load(folder) is None:
                shutil.rmtree(folder)
                rename_folder(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load(folder: Path) -> Tokenised | None:
    """The arrays of ``folder``, memory-mapped; None when they are missing or damaged."""
    if not (folder / "meta.json").is_file():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {
            path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in folder.glob("*.npy")
        }
        kept = arrays.pop("kept")
        examples = Examples(
            **{"types": None, **arrays}, pad_id=meta["pad_id"], causal=meta["causal"]
        )
        found = Tokenised(examples, kept, meta["counts"], meta["digest"])
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        return None
    return found if digest_of_arrays(examples) == found.digest else None
