"""Who takes part in a round, and who can know it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import forefed
from forefed.core.errors import UserError
from forefed.core.keys import Key, Secret
from forefed.core.types import ServerContext
from forefed.federation.state import RunState
from forefed.select import Poisson, Uniform

MEMBERS = range(10, 60)


def context(seed: int, secret: int = 0) -> ServerContext:
    return ServerContext(round=1, key=Key(seed), own=Secret.rehearsed(secret))


def test_a_uniform_cohort_is_what_the_public_key_draws() -> None:
    numbers = Key(3).fold("cohort").choice(50, 7)
    assert Uniform().select(MEMBERS, 7, context(3)) == [10 + i for i in numbers]
    assert Uniform().select(MEMBERS, 99, context(3)) == [*MEMBERS]
    assert Uniform().probability(50, 7) is None  # anybody computes it: nothing is amplified


def test_poisson_draws_every_member_by_itself() -> None:
    drawn = [Poisson().select(MEMBERS, 5, context(0, s)) for s in range(2000)]
    sizes = [len(d) for d in drawn]
    mean = sum(sizes) / len(sizes)
    variance = sum((n - mean) ** 2 for n in sizes) / len(sizes)
    # binomial(50, 0.1): mean 5, variance 4.5; 0.005 of the cohorts are empty
    assert abs(mean - 5) < 0.2 and abs(variance - 4.5) < 0.5 and 0 < sizes.count(0) < 30
    counts = [sum(m in d for d in drawn) for m in MEMBERS]
    assert min(counts) > 200 - 5 * 13.4 and max(counts) < 200 + 5 * 13.4
    both = sum(10 in d and 11 in d for d in drawn)
    assert both < 45  # 2000 / 100 expected
    assert all(d == sorted(d) for d in drawn)


def test_poisson_takes_everybody_where_all_are_expected() -> None:
    assert Poisson().select(MEMBERS, 50, context(0)) == [*MEMBERS]
    assert (Poisson().probability(50, 5), Poisson().probability(3, 5)) == (0.1, 1.0)
    assert Poisson().select([], 5, context(0)) == []


def test_nobody_computes_a_poisson_cohort_from_what_is_public() -> None:
    same = [Poisson().select(MEMBERS, 25, context(7, s)) for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]
    with pytest.raises(RuntimeError, match="no secret"):
        Poisson().select(MEMBERS, 25, replace(context(7), own=None))


def loss(params: dict[str, torch.Tensor], batch: object) -> torch.Tensor:
    return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()  # type: ignore[index]


def test_empty_cohorts_are_rounds_in_which_nothing_moves() -> None:
    clients = [{"x": torch.eye(2), "y": torch.ones(2)} for _ in range(4)]
    seen: list[RunState] = []
    result = forefed.simulate(
        loss,
        {"w": torch.zeros(2)},
        clients,
        select="poisson",
        cohort=1,
        rounds=30,
        on_round=lambda state, _: seen.append(state),
    )
    sizes = [len(r.cohort) for r in result.reports]
    assert {0, 1, 2} <= {*sizes}  # more than the expected one are heard, too
    assert [len(r.updates) for r in result.reports] == sizes
    empty = [i for i, n in enumerate(sizes) if n == 0 and i]
    assert all(torch.equal(seen[i].params["w"], seen[i - 1].params["w"]) for i in empty)


def test_poisson_and_over_selection_exclude_each_other() -> None:
    with pytest.raises(UserError, match="oversampling"):
        forefed.simulate(
            loss, {"w": torch.zeros(2)}, [{"x": torch.eye(2)}], select="poisson", oversampling=0.5
        )
