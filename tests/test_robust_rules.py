"""Robust rules: by hand, where hostile vectors may carry them, and what leaves them unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from forefed.aggregate import (
    AGGREGATORS,
    Aggregator,
    Bulyan,
    CentredClipping,
    DivideAndConquer,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MudHog,
    MultiKrum,
    NearestMixing,
    NearestNeighbours,
    NormBound,
    Spectral,
    TrimmedMean,
)
from forefed.aggregate.factored import Factored
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Contribution, Params, ServerContext, Unit
from forefed.modifiers import Momentum
from forefed.optimisers import Sgd

UNITS = (Unit("u", ("x",), 0, 1),)
WIDE = Key(7)


def context(previous: Tensor | None = None) -> ServerContext:
    former = {} if previous is None else {"x": previous}
    return ServerContext(round=1, key=Key(1), units=UNITS, previous=former)


def combined(
    rule: Aggregator, x_ND: Tensor, weights: Sequence[float] = (), previous: Tensor | None = None
) -> Tensor:
    """The rule's vector in float64 over vectors of clients 0, 1, ..."""
    w_N = weights or [1.0] * len(x_ND)
    cs = [Contribution(i, w, {"x": x}) for i, (x, w) in enumerate(zip(x_ND, w_N, strict=True))]
    return rule(cs, {}, context(previous))[0]["x"]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        # f = 1: two neighbours each; 4: 1 + 9, 5: 1 + 4, 7: 4 + 9, 1: 9 + 16; 100: far
        (Krum(f=1), [1, 4, 5, 7, 100], 5),
        (MultiKrum(f=1), [1, 4, 5, 7, 100], (5 + 4) / 2),
        (MultiKrum(f=1, m=1), [1, 4, 5, 7, 100], 5),
        # f = 0: three neighbours; the best three of n - f - 2
        (MultiKrum(f=0), [0, 1, 2, 3, 9], (1 + 2 + 0) / 3),
        # selected, with 4, 3, 2, 1 and 1 neighbours: 3 (10, as has 4), 4 (9), 2 (10, as has 5),
        # 5 (1), 1 (25, as has 6); the three nearest to their median 3
        (Bulyan(f=1), [1, 2, 3, 4, 5, 6, 99], 3),
        (Median(), [1, 2, 9, 100], 5.5),
        (TrimmedMean(f=0.25), [1, 2, 3, 4, 5, 6, 7, 99], (3 + 4 + 5 + 6) / 4),
        (TrimmedMean(), [1, 2, 3, 99], 2.5),  # a fifth of four is at least one
        (GeometricMedian(), [0, 1, 5], 1),
        (NearestNeighbours(f=1), [1, 2, 3, 4, 90], 2.5),
        (NearestNeighbours(f=1, pivot=Krum(f=1)), [1, 2, 3, 4, 90], 2.5),
        # f = 1, three each: 1: 1, 2, 4; 2: 1, 2, 4; 4: 2, 4, 1 (as near as 7); 9: 9, 4, 2
        (NearestMixing(f=1, rule=Median()), [1, 2, 4, 9], 7 / 3),
        (NearestMixing(f=1), [1, 2, 4, 9], 7 / 3),
        # all 3 of v = 5, 4, 6 centred at 5; squares along the only direction: 90 goes
        (DivideAndConquer(f=1), [4, 5, 6, 90], 5),
        # cut to the median length 5.5: 4, 5, 5.5, 5.5, whose mean is 5; 4 is farthest from it
        (DivideAndConquer(f=1, cut=1.0), [4, 5, 6, 90], 16 / 3),
        # 90 goes first; of 1, 2, 3, 30 it is 30
        (Spectral(f=2), [1, 2, 3, 30, 90], 2),
    ],
    ids=repr,
)
def test_by_hand(rule: Aggregator, values: list[float], expected: float) -> None:
    assert float(combined(rule, column(*values))) == pytest.approx(expected)


def test_centred_clipping_by_hand() -> None:
    # v = 0, tau = 1: the mean of 0.5, 1, -1 is 1/6, and once more (1/3 + 5/6 - 1)/3
    once = CentredClipping(iterations=1, tau=1.0)
    values, zero = column(0.5, 9.0, -9.0), torch.zeros(1, dtype=torch.float64)
    assert float(combined(once, values, previous=zero)) == pytest.approx(1 / 6)
    twice = CentredClipping(iterations=2, tau=1.0)
    assert float(combined(twice, values, previous=zero)) == pytest.approx(1 / 6 + (1 / 3) / 3)
    # tau: the median distance to v = 1 is 2, so 9 counts as 3
    relative = CentredClipping(iterations=1)
    values = column(0.0, 3.0, 9.0)
    assert float(combined(relative, values, previous=zero + 1)) == pytest.approx((0 + 3 + 3) / 3)
    # nothing before: it begins at the median
    assert float(combined(relative, values)) == pytest.approx(3 + (-3 + 0 + 3) / 3)


ATTACKED = [
    *(Krum(f=3), Median(), TrimmedMean(f=3), Bulyan(f=3), DivideAndConquer(f=3)),
    *(MultiKrum(f=3), NearestNeighbours(f=3), NearestMixing(f=3), Spectral(f=3)),
    DivideAndConquer(f=3, cut=1.0),
]


@pytest.mark.parametrize("rule", ATTACKED, ids=lambda r: r.kind)
def test_twelve_honest_and_three_far_away_stay_in_the_honest_hull(rule: Aggregator) -> None:
    honest = WIDE.normal((12, 30)).double()
    x_ND = torch.cat([honest, torch.full((3, 30), 1e6, dtype=torch.float64)])
    found = combined(rule, x_ND)
    assert bool(((honest.amin(0) <= found) & (found <= honest.amax(0))).all())
    assert float(combined(Mean(), x_ND).min()) > 1e5


def test_the_geometric_median_stays_near_the_honest_mean_at_any_scale() -> None:
    honest = WIDE.normal((12, 30)).double()
    radius = float((honest - honest.mean(0)).norm(dim=1).max())
    for scale in (1.0, 1e-6):  # an absolute floor would make it the mean
        x_ND = scale * torch.cat([honest, torch.full((3, 30), 1e6, dtype=torch.float64)])
        far = float((combined(GeometricMedian(), x_ND) / scale - honest.mean(0)).norm())
        assert far <= 0.22 * radius


def test_how_far_attackers_move_centred_clipping() -> None:
    honest = WIDE.fold("cc").normal((12, 20)).double() / math.sqrt(20)
    start = honest.mean(0)
    rule = CentredClipping(tau=1.0)
    without = combined(rule, torch.cat([honest, start.expand(3, -1)]), previous=start)
    liars = torch.full((3, 20), 1e6, dtype=torch.float64)
    moved = float((combined(rule, torch.cat([honest, liars]), previous=start) - without).norm())
    assert 0.1 < moved <= 3 * 1.0 * 3 / 15


UNCHANGED: list[tuple[str, dict[str, Any]]] = [
    (kind, {"cap": 1.0} if kind == "norm_bound" else {})
    for kind in AGGREGATORS.kinds()
    if kind != "mean"
]
SHIFTED = {k for k, _ in UNCHANGED} - {"norm_bound"}
"""norm_bound measures lengths from 0, and so is the one rule that a shift changes."""


@pytest.mark.parametrize(("kind", "settings"), UNCHANGED, ids=lambda x: str(x))
def test_order_scale_and_shift_change_nothing_else(kind: str, settings: dict[str, Any]) -> None:
    rule = AGGREGATORS.parse({"kind": kind, **settings})
    x_ND = WIDE.fold("same").normal((15, 8)).double()
    x_ND[3:5] *= 20
    former, shift = x_ND[0] / 2, torch.arange(8, dtype=torch.float64)
    plain = combined(rule, x_ND, previous=former)
    mixed = Key(5).permutation(15)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(combined(rule, x_ND[mixed], previous=former), plain, **close)
    for scale in (1e-4, 1e3):
        scaled = combined(rule, scale * x_ND, previous=scale * former)
        torch.testing.assert_close(scaled / scale, plain, **close)
    if kind in SHIFTED:
        shifted = combined(rule, x_ND + shift, previous=former + shift)
        torch.testing.assert_close(shifted, plain + shift, **close)


def test_liars_of_several_lengths_and_directions_go_one_by_one() -> None:
    x_ND = torch.cat([0.1 * WIDE.normal((12, 30)).double(), 50 * torch.eye(30).double()[:3]])
    x_ND[12] *= 3
    honest = x_ND[:12].mean(0)
    torch.testing.assert_close(combined(Spectral(f=3), x_ND), honest)
    assert float(combined(Spectral(f=2), x_ND).norm()) > 1  # one is left


def test_past_updates_tell_liars_that_the_present_ones_do_not() -> None:
    """First all liars turn round; then they say what all say, and a little more, while honest
    clients differ among themselves: one round's vectors accuse the honest, their sums the liars."""
    rule = DivideAndConquer(f=2, past=True, cut=1.0)
    e = torch.eye(5)
    sides = [1.0 if i % 2 else -1.0 for i in range(8)]
    first = [*(e[0] + 0.1 * s * e[4] for s in sides), -e[0], -e[0]]
    second = [*(e[1] + 0.5 * s * e[4] for s in sides), e[1] + 0.3 * e[2], e[1] + 0.3 * e[2]]

    def of(xs: Sequence[Tensor]) -> list[Contribution]:
        return [Contribution(i, 1.0, {"x": x}) for i, x in enumerate(xs)]

    ctx = ServerContext(round=1, key=WIDE, units=UNITS)
    _, state, _ = rule(of(first), {}, ctx)
    told, after, _ = rule(of(second), state, ctx)
    assert float(told["x"][2]) == 0 and float(told["x"][4]) == pytest.approx(0, abs=1e-6)
    forgetful, _, _ = DivideAndConquer(f=2, cut=1.0)(of(second), {}, ctx)
    assert float(forgetful["x"][2]) > 0.05
    # whoever comes anew is judged by what it has said; all others' sums stay
    _, later, _ = rule(of(second)[:5], after, ctx)
    assert later.keys() == after.keys() and torch.equal(later["u/past/9"], after["u/past/9"])
    # of one round it is the rule without
    now, _, _ = rule(of(second), {}, ctx)
    assert torch.equal(now["x"], forgetful["x"])


@pytest.mark.parametrize(
    "rule",
    [
        TrimmedMean(f=0),
        DivideAndConquer(f=0),
        NearestNeighbours(f=0),
        NearestMixing(f=0),
        Spectral(f=0),
    ],
)
def test_without_liars_it_is_the_mean(rule: Aggregator) -> None:
    x_ND = WIDE.normal((6, 4)).double()
    torch.testing.assert_close(combined(rule, x_ND), x_ND.mean(0))


@pytest.mark.parametrize("kind", AGGREGATORS.kinds())
def test_one_client_alone_is_the_result(kind: str) -> None:
    x_ND = WIDE.normal((1, 4)).double()
    torch.testing.assert_close(combined(AGGREGATORS.parse(kind), x_ND), x_ND[0])


ROBUST = [e.kind_name() for e in AGGREGATORS if not issubclass(e, Mean | Factored)]
"""All that is no average, of updates or of the products that their factors stand for."""


@pytest.mark.parametrize("kind", ROBUST)
def test_what_is_not_finite_is_dropped_and_counted_as_hostile(kind: str) -> None:
    rule = AGGREGATORS.parse(kind)
    x_ND = WIDE.normal((14, 4)).double()
    bad = torch.cat([x_ND, torch.full((1, 4), math.nan, dtype=torch.float64)])
    bad_too = bad.clone()
    bad_too[-1] = math.inf
    cs = [Contribution(i, 1.0, {"x": x}) for i, x in enumerate(bad)]
    total, _, metrics = rule(cs, {}, context())
    assert bool(torch.isfinite(total["x"]).all()) and metrics["not_finite"] == 1
    torch.testing.assert_close(combined(rule, bad_too), total["x"])
    if hasattr(rule, "f"):  # three of 15 were assumed; two are left
        fewer = rule.model_copy(update={"f": 2})
        torch.testing.assert_close(combined(fewer, x_ND), total["x"])
    nobody = [Contribution(i, 1.0, {"x": x * math.nan}) for i, x in enumerate(x_ND)]
    total, _, metrics = rule(nobody, {}, context())
    assert total == {} and metrics["not_finite"] == 14


def test_too_few_replicas_take_the_bounded_mean_and_are_counted() -> None:
    for rule, enough in ((TrimmedMean(f=2), 5), (Krum(f=2), 7), (Bulyan(f=1), 7), (Median(), 3)):
        x_ND = WIDE.normal((enough, 4)).double()
        x_ND[0] *= 1e6
        for n, few in ((enough, 0.0), (enough - 1, 1.0)):
            cs = [Contribution(i, 1.0, {"x": x}) for i, x in enumerate(x_ND[:n])]
            total, _, metrics = rule(cs, {}, context())
            assert metrics == {"few_holders": few}, rule
            if n > 2:  # of two, the median length is half of the longer one's
                assert float(total["x"].norm()) < 10


def test_how_many_examples_a_client_claims_does_not_carry_the_rule() -> None:
    x_ND = column(1.0, 1.0, 1.0, 1.0, 2.0)
    claims = [10.0, 10.0, 10.0, 10.0, 1e9]
    for kind in ROBUST:
        rule = AGGREGATORS.parse(kind)
        far = float(combined(rule, x_ND, claims)) - 1
        # a norm bound counts it for three others, the rest for one
        assert far <= (1e-9 if kind == "norm_bound" else 0.2 + 1e-9), kind
    bounded = NormBound(cap=2.0)
    assert float(combined(bounded, x_ND, claims)) == pytest.approx((4 * 10 + 30 * 2) / 70)


def test_a_share_is_as_much_as_the_rule_bears() -> None:
    assert [TrimmedMean().hostile(n) for n in (3, 9, 10, 50)] == [1, 1, 2, 10]
    assert [Bulyan().hostile(n) for n in (7, 10, 15, 20)] == [1, 1, 3, 4]
    assert TrimmedMean(f=0.3).hostile(50) == 15 and TrimmedMean(f=7).hostile(3) == 7
    with pytest.raises(UserError, match=r"aggregator\.f"):
        forefed.configure(sets=["aggregator=krum", "aggregator.f=0.5"])


def quadratics(d: int, n: int, rounds: int, rule: Any, **attack: Any) -> float:
    """Relative error after gradient steps on |w - c_i|^2 / 2 with scalars on shared directions."""
    key = Key(3)
    centre = key.normal((d,)).double()
    own = centre + 0.3 * key.fold("own").normal((n, d)).double()
    w, f = torch.zeros(d, dtype=torch.float64), attack.get("f", 0)
    for step in range(rounds):
        v_D = key.fold("v").direction_values("rademacher", (d,), step, 0).double()
        s_N = (w - own) @ v_D
        if f:
            s_N[:f] = -10 * s_N[f:].mean()
        w = w - attack["rate"] * combined(rule, s_N[:, None]) * v_D
    return float((w - own[f:].mean(0)).norm() / own[f:].mean(0).norm())


def test_scalars_along_shared_directions_withstand_three_of_ten() -> None:
    """F2 at a hundredth of its dimension: there mean 1088, median 0.311, trimmed 0.321."""
    setting = {"d": 100, "n": 10, "rounds": 400, "rate": 0.5 / 100}
    clean = quadratics(rule=Mean(), **setting)
    assert quadratics(rule=Mean(), f=3, **setting) > 100
    for rule in (Median(), TrimmedMean(f=3)):
        assert quadratics(rule=rule, f=3, **setting) < 0.4
    assert clean < 0.3


def test_a_rule_over_the_slopes_of_a_run() -> None:
    w, key = torch.tensor([1.0, -2.0, 0.5]), Key(3)
    clients = []
    for i in range(6):
        x = key.fold(i).normal((16, 3))
        clients.append({"x": x, "y": x @ w if i else x @ w * -1000})

    def loss(params: Params, batch: dict[str, Tensor]) -> Tensor:
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()

    def found(**rule: object) -> Any:
        client = {"batch_size": "all", "optimiser": Sgd(lr=0.05), "max_steps": 1}
        start = {"w": torch.zeros(3)}
        engine = {
            "engine": {"kind": "forward"},
            "directions": {"kind": "fresh", "k": 4, "shared": True},
        }
        sets = {"strategy": "decomfl", **engine, "client": client, "rounds": 40, **rule}
        return forefed.simulate(loss, start, clients, **sets)

    robust = found(aggregator="trimmed_mean")
    assert float((robust.params["w"] - w).norm()) < 0.3
    assert robust.reports[0].metrics == {"few_holders": 0.0}
    assert float((found().params["w"] - w).norm()) > 30


# centred clipping looks back, and clients that send momenta differ less


def test_momentum_by_hand() -> None:
    from forefed.core.types import ClientContext, Order, Update

    rule, state = Momentum(beta=0.5), {}
    ctx = ClientContext(order=Order(1, 1, 0, ("x",), {}))
    sent = []
    for value in (4.0, 8.0, 0.0):
        update = Update(0, 3, {"x": torch.tensor([value])})
        update, state = rule.on_send(update, state, ctx)
        sent.append(float(update.grad["x"]))
    assert sent == [4.0, 6.0, 3.0]
    nothing, after = rule.on_send(Update(0, 0, {"x": torch.zeros(1)}), state, ctx)
    assert float(nothing.grad["x"]) == 0 and after is state


def test_momentum_divides_the_variance() -> None:
    from forefed.core.types import ClientContext, Order, Update

    rule, state = Momentum(beta=0.9), {}
    ctx = ClientContext(order=Order(1, 1, 0, ("x",), {}))
    drawn = Key(4).normal((300, 400))
    for value in drawn:
        update, state = rule.on_send(Update(0, 1, {"x": value}), state, ctx)
    ratio = float(drawn.var() / update.grad["x"].var())
    assert ratio == pytest.approx((1 + 0.9) / (1 - 0.9), rel=0.2)


def test_momentum_is_the_clients_own_and_goes_on_from_a_checkpoint() -> None:
    key, w = Key(3), torch.tensor([1.0, -2.0, 0.5])
    clients = [{"x": (x := key.fold(i).normal((8, 3))), "y": x @ w} for i in range(4)]

    def loss(params: Params, batch: dict[str, Tensor]) -> Tensor:
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()

    sets: dict[str, Any] = {"modifiers": ["momentum"], "aggregator": "centred_clipping"}
    result = forefed.simulate(loss, {"w": torch.zeros(3)}, clients, rounds=3, **sets)
    kept = result.star.transport.store.states
    assert all("modifier.momentum/w" in state for state in kept.values()) and len(kept) == 4
    assert result.state.of("previous").keys() == {"w"}
    with pytest.raises(UserError, match="'momentum' works on delta"):
        forefed.simulate(loss, {"w": torch.zeros(3)}, clients, strategy="decomfl", **sets)


# nearest neighbours


def test_equal_honest_vectors_come_out_exactly() -> None:
    honest = WIDE.normal((1, 50)).double().expand(9, -1)
    liars = torch.full((2, 50), 1e6, dtype=torch.float64)
    assert torch.equal(combined(NearestNeighbours(f=2), torch.cat([honest, liars])), honest[0])


def test_one_mix_of_nearest_neighbours_shrinks_the_variance() -> None:
    """Every node's own vector is its pivot (as published): 0.015 of the variance is left."""
    honest = Key(9).normal((9, 50)).double()
    mean, std = honest.mean(0), honest.std(0, correction=0)
    x_ND = torch.cat([honest, (mean + 1.5 * std).expand(2, -1)])
    mixed = []
    for own in honest:
        nearest = (x_ND - own).norm(dim=1).argsort()[:9]
        mixed.append(x_ND[nearest].mean(0))
    ratio = float(torch.stack(mixed).var(0).mean() / honest.var(0).mean())
    assert ratio == pytest.approx(0.015, abs=0.015)


# MUD-HoG


def mud_hog(
    updates: Callable[[int, Key], list[Tensor]], rounds: int, seed: int
) -> tuple[list[dict[str, float]], list[Tensor]]:
    rule, state = MudHog(), {}
    told, totals = [], []
    for number in range(rounds):
        cs = [
            Contribution(i, 1.0, {"x": x})
            for i, x in enumerate(updates(number, Key(seed).fold(number)))
        ]
        total, state, metrics = rule(cs, state, context())
        told.append(dict(metrics))
        totals.append(total["x"])
    return told, totals


def mixed_company(scale: float = 1.0) -> Callable[[int, Key], list[Tensor]]:
    """22 honest, 6 flips, 6 noisy, 4 targeted, 2 unreliable, around a direction g of length 1."""
    d = 200
    g = Key(1).normal((d,)).double()
    g = g / g.norm()
    side = Key(2).normal((d,)).double()
    side = side - (side @ g) * g
    side = side / side.norm()

    def draw(number: int, key: Key) -> list[Tensor]:
        noise = key.normal((40, d)).double() / math.sqrt(d)
        base = [g] * 22 + [-g] * 6 + [g] * 6 + [g + 0.7 * side] * 4 + [0.3 * g] * 2
        size = [0.1] * 28 + [1.0] * 6 + [0.1] * 4 + [0.3] * 2
        return [scale * (b + s * x) for b, s, x in zip(base, size, noise, strict=True)]

    return draw


def test_histories_name_everybody_rightly() -> None:
    for seed in range(3):
        told, totals = mud_hog(mixed_company(), 8, seed)
        last = told[-1]
        assert {k: last[k] for k in ("flip", "noise", "targeted", "unreliable")} == {
            **{"flip": 6, "noise": 6, "targeted": 4, "unreliable": 2}
        }
        assert last["excluded"] == 16
        # 22 honest and 2 of 0.3 g: nobody hostile is in the mean
        g = Key(1).normal((200,)).double()
        along = float(totals[-1] @ (g / g.norm()))
        assert along == pytest.approx((22 + 2 * 0.3) / 24, abs=0.02)
        assert told[1]["excluded"] == told[2]["excluded"] == 0  # three answers, two rounds


def test_no_label_depends_on_the_scale() -> None:
    assert mud_hog(mixed_company(), 6, 0)[0] == mud_hog(mixed_company(1e-4), 6, 0)[0]


def test_clean_clients_are_left_in() -> None:
    def honest(number: int, key: Key) -> list[Tensor]:
        return list(1 + 0.1 * key.normal((20, 200)).double())

    for seed in range(2):
        told, _ = mud_hog(honest, 12, seed)
        assert all(line["excluded"] == 0 for line in told)


def test_histories_are_copies() -> None:
    from forefed.aggregate.mud_hog import remembered

    state: Params = {}
    short = []
    for value in (1.0, 2.0, 3.0, 10.0, 20.0, 30.0):
        own = remembered(state, "u/7", torch.tensor([value]))
        state = {f"u/7/{n}": x for n, x in own.items()}
        short.append(float(own["recent"].mean()))
    assert short[2:] == [2.0, 5.0, 11.0, 20.0] and float(own["sum"]) == 66 and own["count"] == 6


def test_five_clean_rounds_forgive() -> None:
    def reformed(number: int, key: Key) -> list[Tensor]:
        drawn = list(1 + 0.1 * key.normal((12, 50)).double())
        return [-drawn[0] if number < 5 else drawn[0], *drawn[1:]]

    told, _ = mud_hog(reformed, 14, 0)
    excluded = [int(line["excluded"]) for line in told]
    # named from round 3, confirmed in 4; its short mean points forward again from round 7
    assert excluded == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
