"""Personal models, mixed ranks and rounds that wait for nobody, between real processes over TLS.

Minutes long, so not among the default tests: ``make test-deploy``.
"""

from __future__ import annotations

import json

import pytest

from deployment import rehearsal
from forefed.run import run

pytestmark = pytest.mark.deploy

RANKS = ["strategy=flexlora", "sharing={kind='ranks', ranks=[8, 4, 2]}"]
FAMILY = {
    "flow": ["strategy=flow"],
    "hyperfl": ["strategy=hyperfl", "adapter.width=4", "client.epochs=1"],
    "ranks": RANKS,
    "fedbuff": ["strategy=fedbuff", "topology.buffer=3"],  # all: the clock decides nothing
}


@pytest.mark.parametrize("name", FAMILY)
def test_tls_sites_end_with_the_bits_of_the_rehearsal(federation, tmp_path, name):
    more = [*FAMILY[name], "rounds=2"]
    alone = run(rehearsal(federation.world, tmp_path, *more))
    together = federation.run(name, *more)
    assert all(line["replies"] == 3 for line in together.finish())
    assert together.digest == alone.summary["digest"]


def test_a_server_that_waits_for_two_of_three(federation):
    together = federation.run("fedbuff-2", "strategy=fedbuff", "topology.buffer=2", "rounds=3")
    found = together.finish()
    assert [line["replies"] for line in found] == [2, 2, 2]
    assert all(line["metrics"]["at_work"] == 1 for line in found)


def test_ranks_by_what_the_sites_say_of_their_memory(federation, tmp_path):
    """All say 4 GB, in which the whole rank fits."""
    alone = run(rehearsal(federation.world, tmp_path, *RANKS, "sharing.ranks=[8]", "rounds=2"))
    together = federation.run("by-memory", *RANKS, "sharing.ranks=auto", "rounds=2")
    together.finish()
    assert together.digest == alone.summary["digest"]
    costs = json.loads((together.folder / "plan.json").read_text())["costs"]
    assert [rank for rank, _ in costs] == [8, 4, 2, 1]
    assert "large: rank 8 in 4.00 GB" in (together.folder / "notes.jsonl").read_text()
