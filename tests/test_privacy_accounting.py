"""Epsilon of known mechanisms, the properties it must have, and the noise it is about."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Secret
from forefed.privacy import Release, bounded, capped, epsilon, gaussian, noise_for, noised
from forefed.privacy.accountant import LARGEST

DELTA = 1e-5


def releases(q: float, sigma: float, count: int) -> list[Release]:
    return [Release(unit="client", sigma=sigma, adversary="all", q=q, count=count)]


@pytest.mark.parametrize(
    ("q", "sigma", "count", "renyi", "exact"),
    [
        (1, 1, 1, 4.753, 4.377),
        (1, 10, 100, 4.753, 4.377),
        (0.01, 1, 1000, 2.108, None),
        (0.01, 1, 10_000, 6.719, None),
        (0.1, 1, 100, 7.973, None),
        (256 / 60_000, 1.1, 14_062, 2.597, None),
    ],
)
def test_reference_values(
    q: float, sigma: float, count: int, renyi: float, exact: float | None
) -> None:
    tight = epsilon(releases(q, sigma, count), DELTA)
    if exact is None:
        assert epsilon(releases(q, sigma, count), DELTA, "rdp") == pytest.approx(renyi, rel=0.01)
        assert 0.8 * renyi < tight < renyi
    else:
        assert tight == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize(("mu", "known"), [(0.5, 1.993), (2, 9.997)])
def test_exact_composition_of_gaussians(mu: float, known: float) -> None:
    assert epsilon(releases(1, 1 / mu, 1), DELTA) == pytest.approx(known, rel=3e-4)
    split = [*releases(1, 4 / mu, 8), *releases(1, math.sqrt(2) / mu, 1)]
    assert epsilon(split, DELTA) == pytest.approx(known, rel=3e-4)  # sum n / sigma^2 = mu^2
    # the definition itself, at the epsilon that came out
    eps = epsilon(releases(1, 1 / mu, 1), DELTA)
    normal = stats.norm
    hockey_stick = normal.cdf(mu / 2 - eps / mu) - math.exp(eps) * normal.cdf(-mu / 2 - eps / mu)
    assert hockey_stick == pytest.approx(DELTA, rel=1e-6)


PFL = "pfl 0.6.0 (pfl-research), with prv-accountant 0.2.0 and dp-accounting 0.6.0, delta 1e-5"
"""Where the numbers below come from: ``GaussianMechanism.construct_single_iteration`` and
``PLDPrivacyAccountant``; clipping and noise are ``constrain_sensitivity`` and ``add_noise``."""


@pytest.mark.parametrize(
    ("target", "multiplier"),
    [(1.0, 3.7306316348), (2.0, 1.9938124456), (4.0, 1.0811618495), (8.0, 0.6002290722)],
)
def test_pfl_research_adds_as_much_noise_for_a_target(target: float, multiplier: float) -> None:
    own = noise_for(target, DELTA, 1.0, 1)
    assert multiplier <= own == pytest.approx(multiplier, rel=1e-4)


@pytest.mark.parametrize(
    ("q", "sigma", "count", "cost"),
    [(0.01, 1.0, 1000, 1.8282436), (0.1, 1.0, 100, 7.0466029), (0.05, 0.746, 40, 4.8870058)],
)
def test_pfl_research_counts_as_much(q: float, sigma: float, count: int, cost: float) -> None:
    assert epsilon(releases(q, sigma, count), DELTA) == pytest.approx(cost, rel=2e-4)


def test_pfl_research_cuts_the_same_and_its_noise_is_as_wide() -> None:
    """[3, 0] and [4, 12] together to a length of 2; noise of 1.5 bounds on the sum."""
    cut = bounded({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0, 12.0])}, 2.0)
    assert cut["a"].tolist() == pytest.approx([0.46153846153846145, 0.0])
    assert cut["b"].tolist() == pytest.approx([0.6153846153846153, 1.8461538461538458])
    drawn = noised({"a": torch.zeros(40_000)}, 1.5 * 2.0, Secret.rehearsed(1))["a"]
    assert float(drawn.std()) == pytest.approx(2.993, rel=0.02)  # of 200,000 there


def test_more_is_dearer_and_nothing_is_free() -> None:
    base = epsilon(releases(0.1, 2, 50), DELTA)
    assert epsilon(releases(0.2, 2, 50), DELTA) > base
    assert epsilon(releases(0.1, 2, 100), DELTA) > base
    assert epsilon(releases(0.1, 3, 50), DELTA) < base
    assert epsilon(releases(0.1, 2, 50), 1e-7) > base
    assert epsilon(releases(0, 2, 50), DELTA) == epsilon([], DELTA) == 0
    assert epsilon(releases(0.1, 0, 1), DELTA) == math.inf
    without = epsilon(releases(1, 2, 50), DELTA)
    assert epsilon(releases(0.999, 2, 50), DELTA) == pytest.approx(without, rel=0.01)
    assert epsilon(releases(1, 1e4, 1), 0.1) == 0.0


def test_units_have_budgets_of_their_own() -> None:
    both = [*releases(1, 1, 1), Release(unit="example", sigma=1, adversary="all")]
    with pytest.raises(ValueError, match="two units"):
        epsilon(both, DELTA)


def test_noise_from_a_target() -> None:
    for q, count in ((1.0, 20), (0.2, 20)):
        sigma = noise_for(3.0, DELTA, q, count)
        assert 2.95 < epsilon(releases(q, sigma, count), DELTA) <= 3.0
    assert noise_for(4.377, DELTA, 1, 100) == pytest.approx(10, rel=2e-3)
    with pytest.raises(UserError, match=rf"not even {LARGEST:g} times"):
        noise_for(1e-9, DELTA, 1, 1000)


def test_a_cap_counts_the_dearest_rounds_of_one_unit() -> None:
    made = [
        Release(unit="client", sigma=s, adversary="all", round=r, cap=2)
        for r, s in enumerate((3.0, 1.0, 2.0, 5.0), 1)
    ]
    assert [r.round for r in capped(made)] == [2, 3]
    assert len(capped([*made, *releases(1, 1, 1)])) == 3  # another cap, and a release of no round


def test_noise_is_normal_far_into_its_tails() -> None:
    noise = gaussian(Secret.rehearsed(1), (400, 500))
    assert noise.dtype == torch.float64 and noise.shape == (400, 500)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    # of 200,000 values 0.8 lie beyond 4.42 on either side; the table of directions ends at 4.33
    many = gaussian(Secret.rehearsed(2), (2_000_000,)).abs()
    assert 4.8 < float(many.max()) < 6.5
    assert torch.equal(noise, gaussian(Secret.rehearsed(1), (400, 500)))


def test_another_sum_gets_other_noise_and_the_same_sum_the_same() -> None:
    secret, total = Secret.rehearsed(1), {"a": torch.zeros(1000), "b": torch.ones(7)}
    once, again = noised(total, 0.5, secret), noised(total, 0.5, secret)
    assert all(torch.equal(once[n], again[n]) for n in total)
    other = noised({**total, "b": 2 * torch.ones(7)}, 0.5, secret)
    correlation = float(torch.dot(once["a"], other["a"]) / (once["a"].norm() * other["a"].norm()))
    assert abs(correlation) < 5 / 1000**0.5
    assert 0.45 < float(once["a"].std()) < 0.55
    # no digit finer than the grid is left of the sum
    step = 2.0**-17
    shifted = noised({"a": total["a"] + math.pi}, 0.5, secret)["a"]
    assert torch.equal((shifted / step).round() * step, shifted)


def test_bounds_hold_whatever_comes() -> None:
    tree = {"a": torch.randn(40, generator=torch.Generator().manual_seed(0)), "b": torch.ones(3)}
    for clip in (1e-3, 1.0, 2.0):
        assert trees.norm(bounded(tree, clip)) <= clip * (1 + 1e-12)
    small = {n: x / 1e6 for n, x in tree.items()}
    assert all(torch.equal(x, small[n].double()) for n, x in bounded(small, 1.0).items())
    for bad in (math.nan, math.inf):
        spoilt = bounded({**tree, "b": torch.tensor([1.0, bad])}, 1.0)
        assert all(not x.any() for x in spoilt.values())
    huge = {"a": torch.full((4,), 3e38)}
    assert trees.norm(bounded(huge, 1.0)) == pytest.approx(1)


def test_clipping_a_slope_keeps_the_direction_and_shortens_the_gradient() -> None:
    """E[clip(<g, v>, C) v] = erf(C / (sqrt(2) |g|)) g for Gaussian v."""
    d, n = 8, 400_000
    g = torch.zeros(d, dtype=torch.float64)
    g[0] = 1.0
    v = gaussian(Secret.rehearsed(3), (n, d))
    for ratio, share in ((0.5, 0.383), (1.0, 0.683), (2.0, 0.954)):
        mean = ((v @ g).clamp(-ratio, ratio)[:, None] * v).mean(0)
        assert float(mean[0]) == pytest.approx(share, abs=0.01)
        assert float(mean[1:].abs().max()) < 0.01
