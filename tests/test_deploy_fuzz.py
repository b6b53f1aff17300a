"""The decoders before mutated messages: they read or refuse, quickly and in little memory."""

from __future__ import annotations

import random
import resource
import time
import tracemalloc

import pytest
import torch

from faults import fault
from forefed.wire.message import pack, pack_tensors
from fuzzing import MESSAGES, deep, mutated, survives

MEMORY = 64 << 20
SECONDS = 0.5  # of processor time, for one message


def hammer(times: int, seed: int) -> dict[str, float]:
    """Counts and the worst case; fails on any exception but a refusal."""
    draw, before = random.Random(seed), peak_memory()
    worst, read = 0.0, 0
    for i in range(times):
        kind = list(MESSAGES)[i % len(MESSAGES)]
        data, decode = MESSAGES[kind]
        message = mutated(kind, data, draw)
        started = time.process_time()
        read += survives(decode, message)
        worst = max(worst, time.process_time() - started)
    return {"read": read, "slowest_s": worst, "memory": peak_memory() - before}


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_valid_message_is_read_and_a_deep_one_refused(kind):
    data, decode = MESSAGES[kind]
    assert survives(decode, data)
    assert not survives(decode, deep(kind, data))


def test_mutated_messages():
    seen = hammer(3_000, 1)
    assert 0 < seen["read"] < 1_500  # most mutations matter, and some do not
    assert seen["slowest_s"] < SECONDS and seen["memory"] < MEMORY


ENTRY = torch.tensor([[2, 7, 0]])
BOMBS = {
    "a name assigned again and again": ({"a": [[[0, 3]] * 50_000]}, 1, ENTRY),
    "assignments that no entry has": ({"a": [[[0, 3]]] * 50_000}, 1, ENTRY),
    "a million slopes of no bytes": ({"a": [[[0, 3]]]}, 10**6, ENTRY),
    "a million entries of no bytes": ({"a": [[[0, 3]]]}, 1, torch.zeros(10**6, 0).long()),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_short_record_does_not_become_a_long_one(bomb):
    """Refused before anything is taken apart that a few bytes announce."""
    meta, long, entries = BOMBS[bomb]
    body = pack_tensors({"entries": entries, "0/head": torch.zeros(long, 0, 1)})
    message = pack("record", {"r": 3, **meta}, body)
    tracemalloc.start()
    try:
        assert not survives(MESSAGES["record"][1], message)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # the JSON itself takes most of it
    finally:
        tracemalloc.stop()


@fault(
    "messages mutated at random, with right digests",
    "120,000 of them",
    "read or refused; none takes 0.5 s of processor time; all of them less than 64 MB",
)
@pytest.mark.deploy
def test_very_many_mutated_messages():
    seen = hammer(120_000, 2)
    print(seen)
    assert seen["slowest_s"] < SECONDS and seen["memory"] < MEMORY
