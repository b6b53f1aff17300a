"""The library face: federations over a loss of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import forefed
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.types import Params
from forefed.optimisers import Sgd
from forefed.run.simulate import Rows
from toy import SIZES, ToyLoss, toy_clients, toy_params, toy_units

W = torch.tensor([1.0, -2.0, 0.5])


def squared(params: Params, batch: Rows) -> Tensor:
    return ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean()


def clients(*sizes: int) -> list[Rows]:
    key = forefed.Key(3)
    shares = []
    for i, n in enumerate(sizes):
        x = key.fold(i).normal((n, 3)).float()
        shares.append({"x": x, "y": x @ W + 0.25})
    return shares


START = {"w": torch.zeros(3), "b": torch.zeros(())}
PLAIN = {"batch_size": "all", "optimiser": Sgd(lr=0.1)}


def test_one_round_of_fedsgd_by_hand() -> None:
    """Two clients of 1 and 3 rows, one step: the mean of the gradients, weighted by rows."""
    some = clients(1, 3)
    result = forefed.simulate(
        squared, START, some, strategy="fedsgd", rounds=1, client=PLAIN, server=Sgd()
    )
    x = torch.cat([c["x"] for c in some])
    y = torch.cat([c["y"] for c in some])
    expected = -0.1 * (2 * (-y)[:, None] * x).mean(0)
    torch.testing.assert_close(result.params["w"], expected)
    torch.testing.assert_close(result.params["b"], 0.1 * 2 * y.mean())
    assert result.losses == [pytest.approx(float((y**2).mean()), rel=1e-6)]


@pytest.mark.parametrize("strategy", ["fedavg", "spry", "fedkseed", "decomfl"])
def test_methods_over_an_own_loss(strategy: str) -> None:
    settings = {"client": {"optimiser": {"lr": 0.05}}}
    result = forefed.simulate(
        squared, START, clients(8, 8, 8), strategy=strategy, rounds=20, **settings
    )
    assert result.losses[-1] < result.losses[0]
    assert all(report.bytes_up > 0 for report in result.reports)


def test_units_are_split_and_the_head_is_exact() -> None:
    result = forefed.simulate(
        squared, START, clients(4, 4), strategy="spry", head=["b"], rounds=1, assign="cyclic"
    )
    (report,) = result.reports
    assert {n for u in report.updates for n in u.grad or {}} == {"w", "b"}
    assert [u.is_head for u in result.star.units] == [False, True]


def test_it_goes_on_from_a_state_as_if_never_stopped() -> None:
    sets = {"strategy": "fedadam", "cohort": 2, "seed": 5}
    whole = forefed.simulate(squared, START, clients(4, 5, 6), rounds=4, **sets)
    half = forefed.simulate(squared, START, clients(4, 5, 6), rounds=2, **sets)
    rest = forefed.simulate(squared, START, clients(4, 5, 6), rounds=2, state=half.state, **sets)
    assert trees.digest(rest.params) == trees.digest(whole.params)


def test_the_toy_world_is_one_call() -> None:
    result = forefed.simulate(
        ToyLoss(), toy_params(), toy_clients(), units=toy_units(), head=["head.weight", "head.bias"]
    )
    assert sum(u.n_examples for u in result.reports[0].updates) == sum(SIZES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "minilm"}, "model: simulate has"),
        ({"start": "closed_form"}, "start: simulate has"),
        ({"aggregator": "krumm"}, "aggregator"),
        ({"units": [["w"]]}, r"exactly one; look at \['b'\]"),
        ({"units": [["w", "b"], ["b"]]}, r"exactly one; look at \['b'\]"),
        ({"head": ["c"]}, r"look at \['c'\]"),
        ({"cohort": 9}, "cohort = 9"),
        ({"clients": []}, "at least one client"),
        ({"clients": [{"x": torch.zeros(2, 3), "y": torch.zeros(3)}]}, "client 0: its tensors"),
    ],
)
def test_mistakes_are_told_before_the_first_round(change: dict[str, object], words: str) -> None:
    called = {"clients": clients(2, 2), **change}
    with pytest.raises(UserError, match=words):
        forefed.simulate(squared, START, **called)  # type: ignore[arg-type]
