"""Three sites, a server and TLS with node keys, in the real processes of this machine.

Minutes long, so not among the default tests: ``make test-deploy``.
"""

from __future__ import annotations

import pytest
import torch

from deployment import STRATEGIES, rehearsal
from forefed.run import run
from forefed.run.start_result import load_begun

pytestmark = pytest.mark.deploy


MORE = {
    **STRATEGIES,
    # four exchanges a round; the masks are other ones than the rehearsal's, the sum is the same
    "secure-sum": ["strategy=fedavg", "channel={kind='secure_sum', min_group=3}"],
}


@pytest.mark.parametrize("strategy", MORE)
def test_three_tls_sites_end_with_the_bits_of_the_rehearsal(federation, tmp_path, strategy):
    more = MORE[strategy]
    alone = run(rehearsal(federation.world, tmp_path, *more))
    together = federation.run(strategy, *more)
    assert all(line["replies"] == 3 for line in together.finish())
    assert together.digest == alone.summary["digest"]


SOLVED = (
    "strategy=fedavg",
    "start=closed_form",
    "model.pooling=mean",
    "data.client_test_fraction=0",  # which rows are held out depends on who holds them
    "rounds=0",
)


def test_a_solved_head_is_the_same_bits_for_three_tls_sites_and_any_partition(federation, tmp_path):
    """Of the same rows: a file at each site, or all in one process, dealt out to other clients."""
    heads = []
    for i, partition in enumerate(("{kind='iid', clients=4}", "{kind='dirichlet', clients=7}")):
        config = rehearsal(federation.world, tmp_path / str(i), *SOLVED, f"partition={partition}")
        heads.append(load_begun(run(config).folder))
    together = federation.run("solved", *SOLVED)
    together.finish()
    there = load_begun(together.folder)
    for head in heads:
        assert there.line["examples"] == head.line["examples"] == 56
        assert all(torch.equal(there.head[n], x) for n, x in head.head.items())
