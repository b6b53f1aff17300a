"""What every method ended with before the code was moved: the proof that a refactoring is one.

``digests.json`` holds, for each method with each codec that it takes, the digest of the parameters
after the tiny run of the conformance suite, and its final loss, by kind of machine. Where this one
rounds as one that recorded them (``rounding``), digests must be equal; elsewhere losses are close.

A change that is meant to change results deletes the other kinds' lines of what it changed, records
them anew, and says which and why:

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
from forefed.strategies import Strategy
from forefed.wire import CODECS

FILE = Path(__file__).parent / "digests.json"


def codecs_of(method: Strategy) -> tuple[str, ...]:
    """The codecs that a method is recorded with: one, where it differs from FedAvg in what is
    trained or shared, how it is aggregated or who talks to whom: the codec's half is FedAvg's."""
    codecs = method.fixed.get("codec", tuple(CODECS.kinds()))
    other = {"sharing", "adapter", "aggregator", "topology", "codec"} & method.fixed.keys()
    return codecs[:1] if other and len(codecs) > 1 else codecs


@cache
def rounding() -> str:
    """A digest of what differs between processors and versions of torch: the losses, gradients and
    tangents of a small encoder of transformers, without anything of ours but the numbers put in.

    (Sums, softmax, GELU and layer norm alone agree on processors on which attention and backward
    passes do not: all 45 digests differed there, the losses by 1e-5 of themselves.)
    """
    import transformers

    tree: dict[str, Any] = {}
    for heads in (1, 2):  # of several shapes, as kernels are chosen by shape
        size = {"hidden_size": 16 * heads, "intermediate_size": 24, "num_attention_heads": heads}
        settings = transformers.BertConfig(
            vocab_size=50, num_hidden_layers=2, max_position_embeddings=16, num_labels=3, **size
        )
        with torch.random.fork_rng(devices=[]):
            model = transformers.BertForSequenceClassification(settings).eval()
        with torch.no_grad():
            for i, (_, x) in enumerate(model.named_parameters()):
                x.copy_(0.2 * Key(i).normal(tuple(x.shape)))
        ids = torch.arange(8 * 12).reshape(8, 12) % 50
        mask = (torch.arange(12) < torch.arange(5, 13)[:, None]).long()
        loss = model(input_ids=ids, attention_mask=mask, labels=torch.arange(8) % 3).loss
        loss.backward()
        tree |= {f"{heads}/{n}": x.grad for n, x in model.named_parameters()}
        tree[f"{heads}/loss"] = loss.detach()
    a, b = Key(1).normal((33, 65)), Key(2).normal((65, 47))
    tree["bf16"] = a.bfloat16() @ b.bfloat16()
    return trees.digest(tree)


def recorded() -> dict[str, Any]:
    """{rounding: {"method/codec": {digest, loss}}}: what machines of each kind ended with."""
    return dict(json.loads(FILE.read_text())) if FILE.exists() else {}


def check_digest(place: str, result: Result) -> None:
    """The run of this "method/codec" ended as it is recorded (or is recorded, when asked to)."""
    found = {"digest": result.summary["digest"], "loss": result.summary["final"]["loss"]}
    whole = recorded()
    if os.environ.get("RECORD_DIGESTS"):
        runs = {**whole.get(rounding(), {}), place: found}
        whole = {**whole, rounding(): dict(sorted(runs.items()))}
        FILE.write_text(json.dumps(dict(sorted(whole.items())), indent=1) + "\n")
        return
    if rounding() in whole:
        there = whole[rounding()]
        assert place in there, f"{place} has no digest yet; see the top of tests/digests.py"
        assert found["digest"] == there[place]["digest"], f"{place}: other parameters than recorded"
    for then in whole.values():
        if place in then:
            assert found["loss"] == pytest.approx(then[place]["loss"], rel=1e-2)
