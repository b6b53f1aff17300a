"""The decoders before mutated messages: they read or refuse, quickly and in little memory."""

from __future__ import annotations

import random
import resource
import time

import pytest

from faults import fault
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
