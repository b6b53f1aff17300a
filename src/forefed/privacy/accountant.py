"""From noise to (epsilon, delta), and back.

Gaussian sums without sampling compose exactly (Balle and Wang, arXiv 1805.06530, Theorem 8):

    mu = sqrt(sum count / sigma^2)
    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

Sums over a Poisson sample are composed by privacy loss distributions (Koskela et al., arXiv
1906.03049) of the library dp-accounting, rounded upwards; its Renyi accountant (Mironov et al.,
arXiv 1908.10530) at the orders 2 to 256 is the check. Neighbours differ by one unit added or
removed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from forefed.core.errors import UserError
from forefed.privacy.release import Release

Method = Literal["pld", "rdp"]
Sums = tuple[tuple[float, float, int], ...]
"""(q, sigma, count), each pair of q and sigma once."""

ORDERS = range(2, 257)
INTERVAL = 5e-4
"""Between privacy losses; rounding them up costs less than 0.1 % of epsilon up to 14,000 sums."""
LARGEST = 1e5
"""Of the noise multipliers that are looked for."""
PRECISION = 1e-3
"""Of a noise multiplier that was solved: it is at most so much larger than it had to be."""


def epsilon(releases: Sequence[Release], delta: float, method: Method = "pld") -> float:
    """What these releases cost together, at this delta; infinite where one has no noise.

    Args:
        releases: of one unit of privacy, all that one unit takes part in (``capped``).
        method: for sums over samples; without sampling the result is exact.

    Raises:
        ValueError: releases of two units, or a delta outside (0, 1).
        UserError: the package dp-accounting is needed, and missing.
    """
    if len({r.unit for r in releases}) > 1:
        raise ValueError("clients and examples are two units, and have two budgets")
    counted: Counter[tuple[float, float]] = Counter()
    for r in releases:
        counted[r.q, r.sigma] += r.count
    sums = tuple((q, sigma, n) for (q, sigma), n in sorted(counted.items()) if q > 0 and n)
    return _epsilon(sums, delta, method)


def noise_for(target: float, delta: float, q: float, count: int) -> float:
    """The least noise multiplier (to a thousandth) with which so many sums cost ``target`` at most.

    Raises:
        UserError: no noise reaches it, or dp-accounting is missing.
    """
    return _noise_for(target, delta, q, count)


@lru_cache(maxsize=256)
def _epsilon(sums: Sums, delta: float, method: Method) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta lies between 0 and 1, not at {delta}")
    if not sums:
        return 0.0
    if any(sigma == 0 for _, sigma, _ in sums):
        return math.inf
    if all(q == 1 for q, _, _ in sums):
        return _gaussian(math.sqrt(sum(n / sigma**2 for _, sigma, n in sums)), delta)
    library = _library()
    accountant = (
        library.pld.PLDAccountant(value_discretization_interval=INTERVAL)
        if method == "pld"
        else library.rdp.RdpAccountant(ORDERS)
    )
    for q, sigma, n in sums:
        event = library.GaussianDpEvent(sigma)
        accountant.compose(event if q == 1 else library.PoissonSampledDpEvent(q, event), n)
    return float(accountant.get_epsilon(delta))


def _gaussian(mu: float, delta: float) -> float:
    from scipy.optimize import brentq  # half a second, and most runs have no noise
    from scipy.special import log_ndtr

    def excess(eps: float) -> float:
        first = math.exp(log_ndtr(mu / 2 - eps / mu))
        return first - math.exp(eps + log_ndtr(-mu / 2 - eps / mu)) - delta

    if excess(0.0) <= 0:
        return 0.0
    most = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # of zero-concentrated privacy
    return float(brentq(excess, 0.0, most + 1, xtol=1e-12, rtol=1e-12))


@lru_cache(maxsize=64)
def _noise_for(target: float, delta: float, q: float, count: int) -> float:
    from scipy.optimize import brentq

    if q <= 0 or count <= 0:
        return 0.0

    def cost(sigma: float, method: Method = "pld") -> float:
        return _epsilon(((q, sigma, count),), delta, method)

    enough = 1.0
    while cost(enough, "rdp") > target:  # never less than by "pld", and quicker
        enough *= 2
        if enough > LARGEST:
            raise UserError(
                f"target_epsilon = {target:g} at delta = {delta:g}: not even {LARGEST:g} times the "
                "clip bound of noise reaches it; raise epsilon, or make fewer rounds"
            )
    little = enough / 2
    while cost(little) <= target and little > 1e-6:
        enough, little = little, little / 2

    def too_dear(log_sigma: float) -> float:
        return math.log(max(cost(math.exp(log_sigma)), 1e-12) / target)

    tolerance = PRECISION / 4
    found = brentq(too_dear, math.log(little), math.log(enough), xtol=tolerance, rtol=tolerance)
    sigma = math.exp(found)
    while cost(sigma) > target:
        sigma *= 1 + PRECISION / 2
    return sigma


def _library() -> Any:
    try:
        import dp_accounting
        from dp_accounting import pld, rdp

        assert pld.PLDAccountant and rdp.RdpAccountant
    except (ImportError, AttributeError):
        raise UserError(
            "accounting for a Poisson sample needs the package dp-accounting (0.6 or newer): pip "
            "install 'forefed[dp]'"
        ) from None
    return dp_accounting
