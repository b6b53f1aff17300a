"""What a run's numbers come from: rows, weights, versions. Compared when it goes on.

A run that goes on with other rows or weights is no longer the run that its record tells of. So a
change is refused, or accepted by the user and then written into the record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forefed.core.errors import UserError
from forefed.core.installed import version
from forefed.core.types import Json
from forefed.data.examples import Examples
from forefed.models.attach import ADAPTER_NAME
from forefed.models.quantised import frozen_dtype, tensors_of
from forefed.run.build import Federation

PACKAGES = ("forefed", "torch", "transformers", "tokenizers", "peft", "datasets", "numpy")
"""Packages whose version may change a number."""
WHOLE = 1 << 30
"""Bytes up to which a model is hashed whole."""
SAMPLE = 1 << 22
"""Of a larger one, bytes that are read of each tensor, evenly."""
WORDS = {
    "train": "the training rows (or how the tokeniser cuts them)",
    "test": "the test rows (or how the tokeniser cuts them)",
    "labels": "the classes",
    "clients": "who holds which rows",
    "weights": "the weights of the model",
    "dtype": "the number format of the model",
}
FIXED = ("labels",)
"""What cannot be accepted: nothing that was trained would fit."""


def origin_of(federation: Federation) -> Json:
    """Digests by what they are of, and versions by package."""
    data, model = federation.data, federation.task.model
    return {
        "train": examples_digest(data.population.examples),
        "test": examples_digest(data.test),
        "labels": text_digest(json.dumps(data.label_names)),
        "clients": str(data.population.summary()["digest"]),
        "weights": weights_digest(model),
        "dtype": str(frozen_dtype(model)).removeprefix("torch."),
        "versions": versions(),
    }


def examples_digest(examples: Examples) -> str:
    """SHA-256 of all arrays, and of the passages that answers are cut from."""
    digest = hashlib.sha256(f"{examples.pad_id} {examples.causal}".encode())
    for item in dataclasses.fields(examples):
        value: Any = getattr(examples, item.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{item.name} {value.dtype.str} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            said = json.dumps(dataclasses.asdict(value), default=str)
            digest.update(said.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def weights_digest(model: Any) -> str:
    """Of the frozen model's tensors, without the adapter's own, which follow from the run's key.

    Of a model above ``WHOLE`` bytes only samples are read, so that it takes seconds; the digest
    then begins with "sampled:", and a change of a few numbers can go unseen.
    """
    digest = hashlib.sha256()
    tensors = {
        name: x
        for name, x in tensors_of(model)
        if isinstance(x, Tensor) and ADAPTER_NAME not in name.split(".")
    }
    sampled = sum(x.nbytes for x in tensors.values()) > WHOLE
    for name, x in tensors.items():
        digest.update(f"{name.replace('.base_layer', '')} {x.dtype} {tuple(x.shape)}".encode())
        flat = x.detach().reshape(-1)
        if sampled:
            flat = flat[:: max(1, -(-x.nbytes // SAMPLE))]
        if flat.numel():
            digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().data)
    return f"{'sampled:' if sampled else ''}{digest.hexdigest()}"


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def versions() -> dict[str, str]:
    """The installed version of every package that matters."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # without a constraint of ours, such as the tokenizers of another build
    return found


def changes(before: Json, now: Json) -> list[Json]:
    """What differs: its name, and what it was and is (versions as they are, digests shortened)."""
    found: list[Json] = []
    for name in WORDS:
        if before.get(name) != now[name]:
            found.append({"what": name, "before": before.get(name), "now": now[name]})
    was = before.get("versions") or {}
    for name in PACKAGES:
        old, new = was.get(name), now["versions"].get(name)
        if old != new:
            found.append({"what": f"version of {name}", "before": old, "now": new})
    return found


def check_accepting(resume: bool, accept_changes: bool) -> None:
    """Raises UserError where changes are accepted of a run that only begins."""
    if accept_changes and not resume:
        raise UserError(
            "--accept-changes: goes with --resume (accept_changes=True with resume=True); a run "
            "that begins has nothing that could have changed"
        )


def check_unchanged(folder: Path, found: list[Json], accepted: bool) -> None:
    """Nothing has changed since the run began, or the user knows.

    Raises:
        UserError: changes that were not accepted, or that cannot be.
    """
    if not found:
        return
    said = "; ".join(_said(change) for change in found)
    if any(change["what"] in FIXED for change in found):
        raise UserError(
            f"{folder}: changed since the run began: {said}. With other classes nothing that was "
            "trained fits: restore the rows, or start a new run (--set name=...)"
        )
    if not accepted:
        raise UserError(
            f"{folder}: changed since the run began: {said}. Restore it; or go on with "
            "--accept-changes, which writes it into the record"
        )


def _said(change: Json) -> str:
    what, before, now = change["what"], change["before"], change["now"]
    if what in WORDS and what != "dtype":
        return WORDS[what]
    return f"{WORDS.get(what, what)} ({before} before, {now} now)"
