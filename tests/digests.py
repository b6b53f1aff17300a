"""What every method ended with before the code was moved: the proof that a refactoring is one.

``digests.json`` holds, for each method with each codec that it takes, the digest of the parameters
after the tiny run of the conformance suite, and its final loss. Where this machine rounds as the
one that recorded them (``rounding``), digests must be equal; elsewhere losses must be close.

A change that is meant to change results records them anew, and says which and why:

    RECORD_DIGESTS=1 python -m pytest tests/test_conformance.py -k strategy_with_every_codec
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from forefed.core import trees
from forefed.core.keys import Key
from forefed.run import Result

FILE = Path(__file__).parent / "digests.json"


@cache
def rounding() -> str:
    """A digest of what differs between processors and versions of torch: sums and exponentials."""
    a, b = Key(1).normal((33, 65)), Key(2).normal((65, 47))
    x = torch.nn.functional.layer_norm(torch.softmax(a @ b, 1), (47,))
    return trees.digest({"x": torch.nn.functional.gelu(x), "bf16": (a.bfloat16() @ b.bfloat16())})


def recorded() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text())) if FILE.exists() else {}


def check_digest(place: str, result: Result) -> None:
    """The run of this "method/codec" ended as it is recorded (or is recorded, when asked to)."""
    digest, loss = result.summary["digest"], result.summary["final"]["loss"]
    if os.environ.get("RECORD_DIGESTS"):
        runs = {**recorded().get("runs", {}), place: {"digest": digest, "loss": loss}}
        whole = {"rounding": rounding(), "runs": dict(sorted(runs.items()))}
        FILE.write_text(json.dumps(whole, indent=1) + "\n")
        return
    whole = recorded()
    then = whole["runs"][place]
    if whole["rounding"] == rounding():
        assert digest == then["digest"], f"{place} ended with other parameters than recorded"
    assert loss == pytest.approx(then["loss"], rel=1e-2)
