"""FwdLLM: chosen directions, their bias and its removal, and collecting until the mean is quiet."""

import dataclasses
import statistics

import pytest
import torch

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Contribution, Order
from forefed.directions import Fresh
from forefed.directions.candidates import Candidates, SelectedDirections, largest_square
from forefed.directions.sets import RandomDirections
from forefed.federation.star import RunState
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, Trainer, replay
from forefed.modifiers import LastUpdate
from forefed.optimisers import AdamW, Sgd
from forefed.trigger import EveryRound, VarianceTrigger, spread
from forefed.wire import Dense, Scalars
from shared import params, play, star
from toy import toy_clients, toy_params, toy_task, trained

DOUBLE = torch.float64
ENGINE = FiniteDifference(head="perturbed")
FRESH = Fresh(k=2, distribution="gauss16")
FOUR = Candidates(k=2, distribution="gauss16", count=4, head_k=4)


def last_update(like, seed=3):
    return {f"last_update/{n}": Key(seed).fold(n).normal(x.shape).to(x) for n, x in like.items()}


def order(memo, like=None):
    like = like or toy_params(torch.float32)
    return Order(7, 2, 1, tuple(like), like, memo)


def test_one_candidate_or_no_last_update_is_plain_random_directions():
    like = toy_params(torch.float32)
    expected = FRESH.of(order({})).tangents(like, range(2))
    zeros = {n: torch.zeros_like(x) for n, x in last_update(like).items()}
    for draw, memo in ((FRESH, last_update(like)), (FOUR, {}), (FOUR, zeros)):
        directions = draw.of(order(memo))
        assert type(directions) is RandomDirections
        assert trees.digest(directions.tangents(like, range(2))) == trees.digest(expected)
    anchor = {n.removeprefix("last_update/"): x for n, x in last_update(like).items()}
    one = SelectedDirections(7, 2, 1, 2, "gauss16", candidates=1, anchor=anchor)
    assert trees.digest(one.tangents(like, range(2))) == trees.digest(expected)
    slopes = torch.tensor([1.0, -2.0])
    combined = FRESH.of(order({})).combine(like, slopes)
    assert trees.digest(one.combine(like, slopes)) == trees.digest(combined)


def test_the_chosen_direction_is_the_best_of_its_own_candidates():
    like = toy_params(torch.float32)
    directions = FOUR.model_copy(update={"k": 5}).of(order(last_update(like)))
    everything = RandomDirections(7, 2, 1, 20, "gauss16").tangents(like, range(20))
    anchor = last_update(like)
    along = [
        sum(
            float((everything[n][j].double() * anchor[f"last_update/{n}"].double()).sum())
            for n in like
        )
        for j in range(20)
    ]
    best = [max(range(j, j + 4), key=along.__getitem__) for j in range(0, 20, 4)]
    assert directions.picks == best
    chosen = directions.tangents(like, range(5))
    for name in like:
        assert torch.equal(chosen[name], everything[name][best])
    assert directions.at(1).picks != best


def test_the_square_of_the_largest_normal_value():
    assert [largest_square(c) for c in (1, 2)] == [1.0, 1.0]
    assert largest_square(3) == pytest.approx(1 + 3**0.5 / (2 * torch.pi), abs=1e-8)
    draws = Key(1).normal((20_000, 10)).max(1).values.square()
    assert largest_square(10) == pytest.approx(float(draws.mean()), rel=0.03)


def test_the_bias_of_choosing_and_its_removal():
    """baselines 9.2 and 9.3: (kappa - 1)(g.r) along r and nothing across; then nothing at all."""
    d, draws, k = 50, 40, 50
    r = Key(1).normal((d,)).double()
    r /= r.norm()
    across = Key(2).normal((d,)).double()
    across -= (across @ r) * r
    g = 2 * r + across / across.norm()
    biased, corrected = [], []
    for number in range(draws):
        chosen = SelectedDirections(1, number, 0, k, "gauss16", candidates=10, anchor={"w": r})
        slopes = chosen.project({"w": g})
        biased.append(RandomDirections.combine(chosen, {"w": g}, slopes)["w"])
        corrected.append(chosen.combine({"w": g}, slopes)["w"])
    bias = torch.stack(biased).mean(0) - g
    kappa = largest_square(10)
    assert float(bias @ r) == pytest.approx((kappa - 1) * 2, rel=0.05)
    n = draws * k
    noise = ((d - 1) * (4 * kappa + 1) / n) ** 0.5  # of the mean, across: E[<g, v>^2] = 4 kappa + 1
    assert float((bias - (bias @ r) * r).norm()) < 1.3 * noise
    mean = torch.stack(corrected).mean(0)
    assert float((mean - g).norm()) < 1.3 * noise
    assert abs(float((mean - g) @ r)) < 0.1


@pytest.mark.parametrize("optimiser", [Sgd(lr=0.1), AdamW()])
def test_server_and_client_choose_alike(optimiser):
    """Law 4: the replay equals the client's own walk, bit for bit."""
    codec = Scalars()
    settings = LocalTraining(batch_size=4, optimiser=optimiser)
    for head in ("perturbed", "exact"):
        engine = ENGINE.model_copy(update={"head": head})
        train = Trainer(settings, engine, codec, toy_task(torch.float32), directions=FOUR)
        for client, data in enumerate(toy_clients()):
            like = toy_params(torch.float32)
            asked = Order(7, 2, client, tuple(like), like, last_update(like))
            update, own = trained(train, asked, data)
            received = replay(
                train, asked, codec.decode(codec.encode(update, ClientContext(order=asked)), asked)
            )
            assert trees.digest(received.grad) == trees.digest(own)
            plain = replay(train, dataclasses.replace(asked, broadcast={}), update)
            if update.n_examples:
                assert trees.digest(plain.grad) != trees.digest(own)


def test_the_last_update_is_the_last_aggregate():
    loop = star(
        Forward(),
        directions=Candidates(k=2, distribution="gauss16", count=3),
        codec=Dense(),
        modifiers=(LastUpdate(),),
        by_records=False,
        server=Sgd(lr=0.5),
    )
    first, _ = play(loop, 1)
    start = params()
    assert loop.plan(RunState(0, start)).popitem()[1].broadcast == {}
    for name, x in start.items():
        moved = (x - first.params[name]) / 0.5
        torch.testing.assert_close(
            first.of("modifier.last_update")[name], moved, rtol=1e-3, atol=1e-6
        )
    told = loop.plan(first).popitem()[1].broadcast
    assert told.keys() == {f"last_update/{name}" for name in start}


def test_spread_by_hand():
    cs = [
        Contribution(0, 1, {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([3.0])}),
        Contribution(1, 9, {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([3.0])}),
        Contribution(2, 5, {"a": torch.tensor([2.0, 4.0])}),
    ]
    # a: mean (2, 2), squares 1+4, 1+0, 0+4 = 10, over 3*2; b: no spread over 2 clients
    assert spread(cs) == (pytest.approx(10 / 6), pytest.approx(8 + 9))
    assert VarianceTrigger(ratio=0.2).enough(cs) and not VarianceTrigger(ratio=0.1).enough(cs)
    assert VarianceTrigger(ratio=0.1, at_most=3).enough(cs)
    alone = [*cs, Contribution(3, 1, {"c": torch.ones(1)})]  # c has one holder: who knows its noise
    assert not VarianceTrigger(ratio=1e9).enough(alone) and not VarianceTrigger().enough([])
    assert EveryRound().enough([])


def test_the_spread_of_forward_gradients_is_d_plus_1_over_n_k():
    like = {"w": torch.zeros(40, dtype=DOUBLE)}
    g = {"w": Key(1).normal((40,)).double()}
    ratios = []
    for number in range(20):
        cs = []
        for client in range(8):
            directions = RandomDirections(1, number, client, 4, "gauss16")
            cs.append(Contribution(client, 1, directions.combine(like, directions.project(g))))
        variance, square = spread(cs)
        ratios.append(variance / trees.norm(g) ** 2)
        assert square > variance
    assert statistics.mean(ratios) == pytest.approx(41 / 32, rel=0.2)


def test_the_server_waits_at_unchanged_parameters_and_then_moves_by_all_answers():
    trigger = VarianceTrigger(ratio=1e-6, at_most=5)  # never quiet: the third round has six answers
    loop = star(
        Forward(head="perturbed"),
        directions=Fresh(k=2),
        codec=Dense(),
        trigger=trigger,
        by_records=False,
        ballast=0,
    )
    state = RunState(0, params(0))
    start, heard, waited = state, [], []
    for _ in range(6):
        state, report = loop.round(state)
        heard += [u for u in report.updates if u.n_examples]
        waited.append(report.pending)
        if report.pending:
            assert trees.digest(state.params) == trees.digest(start.params)
            assert report.pending == len(heard)
        else:
            total = sum(u.n_examples for u in heard)
            for name, x in start.params.items():
                mean = sum(u.n_examples * u.grad[name].double() for u in heard) / total
                torch.testing.assert_close(
                    state.params[name].double(), x.double() - mean, rtol=1e-5, atol=1e-7
                )
            start, heard = state, []
    assert 0 in waited and max(waited) in (3, 4)
    flat = RunState.of_flat(2, play(loop, 2, ballast=0)[0].flat())
    assert trees.digest(loop.round(flat)[0].params) == trees.digest(
        play(loop, 3, ballast=0)[0].params
    )
