"""Three sites, a server and TLS with node keys, in the real processes of this machine.

Minutes long, so not among the default tests: ``make test-deploy``.
"""

from __future__ import annotations

import pytest

from deployment import STRATEGIES, rehearsal
from forefed.run import run

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
