"""Schedules: factors by hand, the former setting, and the same bits wherever a step is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import forefed
from federation import World
from forefed.config.compat import check
from forefed.config.config import configure
from forefed.core.errors import UserError
from forefed.run.rebuild import replay_log
from forefed.schedules import Constant, Cosine, Linear, WarmUp, factor_of

PIECES = 'client.optimiser.schedule=[{kind="warm_up",rounds=1},"cosine"]'


def factors(*pieces, rounds=6):
    return [factor_of(pieces, r, rounds) for r in range(1, rounds + 2)]


def test_factors_by_hand():
    assert factors() == [1] * 7
    assert factors(Linear(), rounds=4) == [1, 0.75, 0.5, 0.25, 0]
    assert factors(Linear(start=0.5, end=0.1), rounds=2) == pytest.approx([0.5, 0.3, 0.1])
    # half a cosine: (1 + cos(pi t)) / 2 at t = 0, 1/4, 1/2, 3/4
    assert factors(Cosine(), rounds=4)[:4] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    # two rounds below the full rate, then what follows has the four that are left
    assert factors(WarmUp(rounds=2), Linear())[:6] == pytest.approx(
        [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]
    )
    assert factors(Constant(value=0.3, rounds=2), Constant(), rounds=3) == [0.3, 0.3, 1, 1]
    # a run that ends before the second piece begins, and one round behind the last piece
    assert factors(WarmUp(rounds=5), Linear(), rounds=2)[:2] == pytest.approx([1 / 6, 2 / 6])
    assert factors(Linear(rounds=2), rounds=4) == [1, 0.5, 0, 0, 0]
    assert factors(WarmUp(rounds=1), rounds=2) == [0.5, 1, 1]


def test_the_former_setting_is_the_linear_piece():
    old, new = (
        configure(sets=["server_schedule=linear"]),
        configure(sets=['server.schedule=["linear"]']),
    )
    assert old == new and old.server.at(3, 10).lr == 1 - 2 / 10
    assert configure(sets=["server_schedule=constant"]) == configure()
    with pytest.raises(UserError, match="was 'constant' or 'linear'"):
        configure(sets=["server_schedule=cosine"])
    two = configure(sets=['server.schedule=["linear", "cosine"]'])
    with pytest.raises(UserError, match=r"server\.schedule: only the last piece"):
        check(two)


def quadratic(params, batch):
    return ((params["w"] - batch["x"]) ** 2).sum(1).mean() / 2


def test_rates_of_clients_and_server_by_hand():
    """One client at 0, gradient w: w <- w (1 - s_r c_r) for the two factors of round r."""
    result = forefed.simulate(
        quadratic,
        {"w": torch.ones(1)},
        [{"x": torch.zeros(1, 1)}],
        rounds=2,
        cohort=1,
        client={"optimiser": {"kind": "sgd", "lr": 0.5, "schedule": ["linear"]}},
        server={"schedule": [{"kind": "warm_up", "rounds": 1}]},
    )
    # client 0.5, 0.25; server 1/2, then the whole
    assert float(result.params["w"]) == pytest.approx((1 - 0.5 * 0.5) * (1 - 0.25))


def test_a_log_of_slopes_is_replayed_with_the_clients_schedule(
    world: World, tmp_path: Path
) -> None:
    fewer = "directions.head_k=8"
    ends = []
    for name, sets in (("with", [PIECES]), ("without", [])):
        result = world.run(tmp_path, f"name={name}", "codec=scalars", fewer, "adapter.u=6", *sets)
        assert replay_log(result.folder).digest == result.summary["digest"]
        ends.append(result.summary["digest"])
    assert ends[0] != ends[1]
