"""Rules over whole units: by hand, whose vectors they take, and what they do with too few."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import forefed
from forefed.aggregate import Aggregator, Mean, Median, NormBound, PerUnit, TrimmedMean
from forefed.core.keys import Key
from forefed.core.types import Contribution, Params, ServerContext, Unit
from forefed.optimisers import Sgd

UNITS = (Unit("pair", ("A", "B"), 0, 3), Unit("alone", ("c",), 1, 1))
CONTEXT = ServerContext(round=1, key=Key(1), units=UNITS)


def contribution(client: int, a: list[float], b: float, weight: float = 1.0) -> Contribution:
    return Contribution(client, weight, {"A": torch.tensor(a), "B": torch.tensor([[b]])})


FIVE = [
    contribution(0, [1.0, 10.0], 3.0),
    contribution(1, [2.0, 20.0], 1.0),
    contribution(2, [4.0, 40.0], 2.0, weight=1e6),  # a claim of many examples changes nothing
    contribution(3, [3.0, 30.0], 5.0),
    contribution(4, [-1e9, 1e9], -1e9),  # a liar
]


@pytest.mark.parametrize(
    ("rule", "some", "a", "b"),
    [
        (Median(), FIVE, [2.0, 30.0], 2.0),
        (Median(), FIVE[:4], [2.5, 25.0], 2.5),
        (TrimmedMean(f=1), FIVE, [2.0, 30.0], 2.0),
        (TrimmedMean(f=2), FIVE, [2.0, 30.0], 2.0),
        (TrimmedMean(f=1), FIVE[:4], [2.5, 25.0], 2.5),
    ],
    ids=repr,
)
def test_robust_rules_by_hand(
    rule: Aggregator, some: list[Contribution], a: list[float], b: float
) -> None:
    total, _, metrics = rule(some, {}, CONTEXT)
    assert total["A"].tolist() == pytest.approx(a)
    assert total["B"].shape == (1, 1) and float(total["B"]) == pytest.approx(b)
    assert total.keys() == {"A", "B"} and metrics == {"few_holders": 0.0}


def test_with_too_few_holders_lengths_are_bounded_and_that_is_counted() -> None:
    two = [contribution(0, [3.0, 0.0], 4.0), contribution(1, [0.0, 0.0], 1.0)]
    total, _, metrics = TrimmedMean(f=1)(two, {}, CONTEXT)
    # lengths 5 and 1, median 3: the first is cut to 3/5
    assert total["A"].tolist() == pytest.approx([0.9, 0.0])
    assert float(total["B"]) == pytest.approx((0.6 * 4 + 1) / 2)
    assert metrics == {"few_holders": 1.0}


def test_a_norm_bound_by_hand() -> None:
    three = [contribution(i, [length, 0.0], 0.0) for i, length in enumerate((1.0, 2.0, 100.0))]
    total, _, metrics = NormBound(cap=2.0)(three, {}, CONTEXT)
    assert total["A"].tolist() == pytest.approx([(1 + 2 + 4) / 3, 0.0])
    assert metrics == {"cut": 1.0}
    loose = NormBound(cap=1e9)(three, {}, CONTEXT)[0]
    assert torch.equal(loose["A"], Mean()(three, {}, CONTEXT)[0]["A"])  # the reduction


def test_the_parameters_of_a_unit_are_taken_from_the_same_clients() -> None:
    """A rule that picks one client's vector must never join A of one with B of another."""
    draws = Key(2)

    class Nearest(PerUnit):
        """The vector nearest to all others (as Krum picks one)."""

        kind: str = "nearest"

        def combine(
            self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: Params, ctx: ServerContext
        ) -> tuple[Tensor, Params]:
            assert x_ND.shape[1] == 8 and unit.params == ("A", "B")
            picked = int(torch.cdist(x_ND, x_ND).sum(1).argmin())
            return x_ND[picked], {"rounds": state.get("rounds", torch.zeros(())) + 1}

    rule, state, apart = Nearest(), {}, 0
    for i in range(50):
        x_NAB = draws.fold(i).normal((6, 2, 4))
        cs = [Contribution(n, 1, {"A": x[0], "B": x[1]}) for n, x in enumerate(x_NAB)]
        total, state, _ = rule(cs, state, CONTEXT)
        from_a, from_b = (
            next(c.client for c in cs if torch.equal(c.delta[n], total[n])) for n in ("A", "B")
        )
        assert from_a == from_b
        each = [int(torch.cdist(x, x).sum(1).argmin()) for x in x_NAB.unbind(1)]
        apart += each[0] != each[1]
    assert apart > 10  # tensor by tensor it would have joined two clients
    assert float(state["pair/rounds"]) == 50


@pytest.mark.parametrize("aggregator", ["median", {"kind": "trimmed_mean", "f": 2}])
def test_robust_rules_withstand_a_client_whose_labels_are_wrong_by_far(aggregator: object) -> None:
    w, key = torch.tensor([1.0, -2.0, 0.5]), Key(3)
    clients = []
    for i in range(6):
        x = key.fold(i).normal((16, 3))
        clients.append({"x": x, "y": x @ w if i else x @ w * -1000})

    def loss(params: Params, batch: dict[str, Tensor]) -> Tensor:
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()

    def error(**rule: object) -> float:
        client = {"batch_size": "all", "optimiser": Sgd(lr=0.1)}
        start = {"w": torch.zeros(3)}
        found = forefed.simulate(loss, start, clients, rounds=20, client=client, **rule)
        return float((found.params["w"] - w).norm())

    assert error(aggregator=aggregator) < 0.3
    assert error() > 30
