"""Client-level differential privacy: what one client can move, and what nobody can see."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from forefed.config.compat import conflicts
from forefed.config.config import configure
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key, Secret
from forefed.core.types import ClientContext, Contribution, Order, Params, ServerContext, Update
from forefed.modifiers import DpClient
from forefed.privacy import capped, epsilon
from forefed.run.simulate import Rows, Simulation
from forefed.wire.records import decode_record

PLAIN = {"kind": "dp_client", "clip": "none", "noise_multiplier": 0}
SLOPES = {
    "strategy": "fedmezo",
    "engine": {"kind": "finite_difference"},
    "directions": {"kind": "fresh", "k": 3, "clamp": 0, "shared": True},
    "client": {"optimiser": {"kind": "sgd", "lr": 0.1}, "max_steps": 2, "batch_size": 4},
    "assign": "everything",
    "codec": "scalars",
}
DENSE = {"client": {"optimiser": {"kind": "sgd", "lr": 0.1}, "batch_size": 4}}


def loss(params: Params, batch: Rows) -> Tensor:
    return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()


def clients(count: int, rows: int = 8, width: int = 5) -> list[Rows]:
    truth = Key(5).normal((width,))
    xs = [Key(6).fold(i).normal((rows, width)) for i in range(count)]
    return [{"x": x, "y": x @ truth} for x in xs]


def play(shares: list[Rows], modifier: dict[str, Any] | None, **settings: Any) -> Simulation:
    width = shares[0]["x"].shape[1]
    modifiers = [modifier] if modifier else []
    start = {"w": torch.zeros(width)}
    return forefed.simulate(loss, start, shares, modifiers=modifiers, **{**DENSE, **settings})


@pytest.mark.parametrize("settings", [{}, SLOPES], ids=["dense", "slopes"])
def test_without_noise_and_clip_it_is_the_plain_run_byte_for_byte(settings: dict[str, Any]) -> None:
    plain = play(clients(6), None, cohort=4, rounds=3, **settings)
    private = play(clients(6), PLAIN, cohort=4, rounds=3, **settings)
    assert torch.equal(plain.params["w"], private.params["w"])
    assert not torch.equal(plain.params["w"], torch.zeros(5))
    assert not any(r.releases for r in private.reports)  # and nothing is called private


@pytest.mark.parametrize("settings", [{}, SLOPES], ids=["dense", "slopes"])
def test_one_client_moves_the_sum_by_the_clip_bound_at_most(settings: dict[str, Any]) -> None:
    clip, cohort = 0.01, 4
    clipping = {"kind": "dp_client", "clip": clip, "noise_multiplier": 0}
    shares = clients(4)
    silent = {"x": torch.zeros(8, 5), "y": torch.zeros(8)}
    wild = {"x": 1e3 * shares[0]["x"], "y": shares[0]["y"]}
    found = [
        play([first, *shares[1:]], clipping, cohort=cohort, rounds=1, **settings).params["w"]
        for first in (shares[0], silent, wild)
    ]
    if settings:  # slopes are what is clipped: the parameters move by lr sqrt(K) clip / cohort...
        return  # ... and more: test_clipped_slopes_by_hand
    assert torch.norm(found[0] - found[1]) <= clip / cohort * (1 + 1e-6)
    assert torch.norm(found[2] - found[1]) == pytest.approx(clip / cohort, rel=1e-4)


def test_clipped_slopes_by_hand() -> None:
    order = Order(1, 1, 2, ("w",), {"w": torch.zeros(5)})
    slopes = {"body": torch.tensor([[3.0, 0.0], [0.0, 4.0]])}
    private = DpClient(clip=1.0, noise_multiplier=1.0)
    sent = Update(2, 17, None, slopes, {"loss": 0.3})
    sent, _ = private.on_send(sent, {}, ClientContext(order=order))
    assert sent.slopes is not None
    torch.testing.assert_close(sent.slopes["body"], slopes["body"] / 5)  # over all steps together
    assert (sent.n_examples, sent.metrics) == (1, {})


def test_the_server_clips_whoever_does_not_and_counts_what_is_not_finite_as_nothing() -> None:
    private = DpClient(clip=2.0, noise_multiplier=1.0)
    ctx = ServerContext(round=1, key=Key(0))
    for value, norm in ((30.0, 2.0), (math.nan, 0.0), (math.inf, 0.0), (0.1, 0.1 * 2**0.5)):
        given = Contribution(1, 900.0, {"a": torch.tensor([value]), "b": torch.tensor([0.1])})
        if value == 0.1:
            given = replace(given, delta={n: torch.tensor([0.1]) for n in "ab"})
        received, _ = private.on_receive(given, {}, ctx)
        assert received.weight == 1 and trees.norm(received.delta) == pytest.approx(norm, rel=1e-6)


def test_example_counts_do_not_weigh() -> None:
    few, many = clients(1, 8)[0], clients(2, 400)[1]
    clipping = {"kind": "dp_client", "clip": 1e-3, "noise_multiplier": 0}
    one = [play([shares], clipping, rounds=1).params["w"] for shares in (few, many)]
    both = play([few, many], clipping, rounds=1)
    torch.testing.assert_close(both.params["w"], (one[0] + one[1]) / 2)
    assert [u.n_examples for r in both.reports for u in r.updates] == [1, 1]
    assert all(not u.metrics for r in both.reports for u in r.updates)
    assert all(not r.contributions for r in both.reports) and math.isnan(both.losses[0])


def test_noise_has_the_stated_size_over_the_expected_count_also_in_an_empty_round() -> None:
    width, sigma, clip = 4000, 3.0, 0.5
    shares = [{"x": torch.zeros(1, width), "y": torch.zeros(1)} for _ in range(20)]
    noisy = {"kind": "dp_client", "clip": clip, "noise_multiplier": sigma}
    states: list[Tensor] = [torch.zeros(width)]
    settings = {"cohort": 2, "rounds": 16, "select": "poisson"}
    found = play(shares, noisy, on_round=lambda s, _: states.append(s.params["w"]), **settings)
    sizes = [len(r.updates) for r in found.reports]
    assert 0 in sizes and max(sizes) > 2
    for before, after in pairwise(states):
        assert float((after - before).std()) == pytest.approx(sigma * clip / 2, rel=0.05)
    assert {(r.q, r.sigma, r.unit) for x in found.reports for r in x.releases} == {
        (0.1, sigma, "client")
    }


def test_noisy_slopes_have_the_stated_size() -> None:
    noisy = {"kind": "dp_client", "clip": 0.5, "noise_multiplier": 2.0}
    client = {"optimiser": {"kind": "sgd", "lr": 0.0}, "max_steps": 50, "epochs": 50}
    found = play(
        clients(3, 2), noisy, rounds=2, cohort=3, **{**SLOPES, "client": client, "seed": 1}
    )
    for report in found.reports:
        (entry,) = decode_record(report.record, found.params).entries
        assert (entry.client, entry.n_examples) == (0, 1)  # nobody's number, nobody's count
        assert entry.slopes["body"].shape == (50, 3)  # whoever had fewer rows
        # clipped slopes are at most 0.5 / 3 long over all 150 numbers
        assert float(entry.slopes["body"].std()) == pytest.approx(2.0 * 0.5 / 3, rel=0.2)


def test_a_run_is_what_its_releases_cost() -> None:
    noisy = {"kind": "dp_client", "clip": 1.0, "target_epsilon": 5.0, "participation": 2}
    found = play(clients(6), noisy, cohort=2, rounds=5)
    asked = [c for r in found.reports for c in r.cohort]
    assert max(asked.count(c) for c in range(6)) == 2  # nobody is drawn a third time
    made = [x for r in found.reports for x in r.releases]
    assert [x.round for x in made] == [1, 2, 3, 4, 5] and len({x.tag for x in made}) == 5
    assert {(x.q, x.cap) for x in made} == {(1.0, 2)}  # of a fixed-size cohort nothing is claimed
    assert len(capped(made)) == 2
    assert 4.95 < epsilon(capped(made), 1e-5) <= 5.0
    again = play(clients(6), noisy, cohort=2, rounds=5)
    assert [r.releases for r in again.reports] == [r.releases for r in found.reports]


def test_the_same_round_over_another_sum_draws_other_noise() -> None:
    """A round that is done again after a stop may hear others: one noise for both would cancel."""
    private = DpClient(clip=1.0, noise_multiplier=1.0)
    ctx = ServerContext(
        round=3, key=Key(0), own=Secret.rehearsed(1), divisor=2.0, blank={"w": torch.zeros(500)}
    )
    sums = [{"w": torch.zeros(500)}, {"w": torch.full((500,), 1e-6)}]
    noise = [private.on_aggregate(s, {}, ctx)[0]["w"] - s["w"] for s in sums]
    assert abs(float(torch.corrcoef(torch.stack(noise))[0, 1])) < 0.25
    same = private.on_aggregate(sums[0], {}, ctx)[0]["w"]
    assert torch.equal(same, noise[0])


NOISY = 'modifiers=[{kind="dp_client", noise_multiplier=1.0}]'
BASE = ["strategy=fedavg"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ([NOISY], ""),
        (['modifiers=["dp_client"]'], "needs either noise_multiplier"),
        (['modifiers=[{kind="dp_client", noise_multiplier=1, target_epsilon=1}]'], "needs either"),
        (['modifiers=[{kind="dp_client", noise_multiplier=1, clip="none"}]'], "without a clip"),
        ([NOISY[:-1] + ', "clip"]'], "put it last"),
        ([NOISY, "aggregator=median"], "reads single contributions"),
        ([NOISY, "strategy=fedavg_split"], "one client's presence shows in all"),
        ([NOISY, "cohort_min=2"], "cohort_min = 1"),
        ([NOISY, "trigger=variance"], "moves when the answers say so"),
        ([NOISY, "oversampling=0.5"], "set oversampling = 0"),
        ([NOISY, "guard=held_out"], "set guard.kind = 'none'"),
        ([NOISY, "start=closed_form"], "asks for sums without noise"),
        ([NOISY, "evaluate.clients=3"], "set it to 0"),
        ([NOISY, "sharing=personal_head"], "set sharing.kind = 'everything'"),
        (
            [NOISY[:-2] + ", participation=2}]", "select=poisson"],
            "participation is for cohorts of fixed size",
        ),
        ([NOISY, "codec=scalars", "client.max_steps=2"], "cannot be summed"),
    ],
)
def test_what_would_let_out_more_is_refused(sets: list[str], said: str) -> None:
    found = [c for c in conflicts(configure(sets=[*BASE, *sets])) if c.startswith("modifiers: 'dp")]
    assert [said in c for c in found] == ([True] if said else [])


def test_the_number_of_steps_must_not_follow_from_the_rows() -> None:
    sets = [NOISY, "codec=scalars", "strategy=fedmezo", "directions.shared=true"]
    sets += ["client.optimiser.kind=sgd", "assign=everything"]
    assert any("set client.max_steps" in c for c in conflicts(configure(sets=sets)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"delta": 0.5}, "with delta = 0.5 and 6 clients"),
        ({"participation": 1}, "6 clients are spent after 3 rounds of 2"),
        ({"target_epsilon": 1e-9}, "not even 100000 times"),
    ],
)
def test_what_the_population_does_not_allow_is_one_sentence(
    more: dict[str, Any], said: str
) -> None:
    noise = {} if "target_epsilon" in more else {"noise_multiplier": 1.0}
    with pytest.raises(UserError, match=said):
        play(clients(6), {"kind": "dp_client", **noise, **more}, cohort=2, rounds=5)


@pytest.mark.parametrize("settings", [{}, SLOPES], ids=["dense", "slopes"])
def test_under_a_secure_sum_the_server_adds_the_same_up(settings: dict[str, Any]) -> None:
    pytest.importorskip("cryptography")
    clipping = {"kind": "dp_client", "clip": 0.3, "noise_multiplier": 0}
    hidden = {"channel": {"kind": "secure_sum", "max_examples": 1}}
    shares = clients(6)
    found = [
        play(shares, clipping, rounds=2, cohort=6, **settings, **more).params["w"]
        for more in ({}, hidden)
    ]
    assert torch.norm(found[0]) > 0.01
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    noisy = {"kind": "dp_client", "clip": 0.3, "noise_multiplier": 1.0}
    made = play(shares, noisy, rounds=2, cohort=6, **settings, **hidden)
    assert all(len(r.releases) == 1 for r in made.reports)


def test_a_secure_sum_does_not_tell_how_many_were_drawn() -> None:
    sets = [NOISY, "channel=secure_sum", "select=poisson", "cohort=10"]
    found = conflicts(configure(sets=[*BASE, *sets]))
    assert any("set select.kind = 'uniform'" in c for c in found)


def test_sums_are_divided_by_the_expected_count_whoever_is_heard() -> None:
    shares = [{"x": torch.ones(2, 4)} for _ in range(12)]
    states = [torch.zeros(4)]
    found = forefed.simulate(
        lambda p, b: (b["x"] @ p["w"]).mean(),  # every client would move by (1, 1, 1, 1)
        {"w": torch.zeros(4)},
        shares,
        select="poisson",
        cohort=3,
        rounds=8,
        modifiers=[{"kind": "dp_client", "clip": 0.1, "noise_multiplier": 0}],
        client={"optimiser": {"kind": "sgd", "lr": 1.0}, "batch_size": "all"},
        on_round=lambda state, _: states.append(state.params["w"]),
    )
    sizes = [len(r.updates) for r in found.reports]
    assert len({*sizes}) > 2
    steps = [float(torch.norm(b - a)) for a, b in pairwise(states)]
    assert steps == pytest.approx([n * 0.1 / 3 for n in sizes], abs=1e-6)
