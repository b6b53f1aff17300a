"""FedKSeed: a pool of directions for the whole run, and parameters that are sums of slopes."""

import numpy as np
import pytest
import torch

from federation import World
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Order
from forefed.directions import Pool
from forefed.directions.sets import RandomDirections
from forefed.federation.star import RunState
from forefed.gradients.backprop import Backprop
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.local.groups import groups_of
from forefed.optimisers import Sgd
from forefed.wire import Scalars
from forefed.wire.orders import encode_order
from forefed.wire.records import RoundRecord, encode_record
from shared import params, play, star
from toy import HEAD

DOUBLE = torch.float64
ENGINE, EIGHT = Forward(head="perturbed"), Pool(k=2, distribution="gauss16", size=8)
POOLED = {"engine": ENGINE, "directions": EIGHT}
PLAIN = Pool(k=2, head_k=3, size=8)
EXACT_HEAD = {"engine": Forward(), "directions": PLAIN}


def order(client, number, like):
    return Order(4, number, client, tuple(like), like)


def test_every_step_draws_from_one_pool_uniformly():
    like = params(0)
    whole = RandomDirections(4, 0, 0, 8, "gauss16", "G").tangents(like, range(8))
    counts = np.zeros(8)
    seen = set()
    for number in range(1, 6):
        for client in range(4):
            directions = EIGHT.model_copy(update={"k": 20}).of(order(client, number, like))
            for step in (0, 1):
                along = directions.at(step)
                counts += np.bincount(along.members, minlength=8)
                seen.add(tuple(along.members))
                tangents = along.tangents(like, range(20))
                assert all(torch.equal(tangents[n], whole[n][along.members]) for n in like)
    assert len(seen) == 40  # no two steps, clients or rounds draw alike
    assert np.abs(counts / counts.sum() - 1 / 8).max() < 4 * (0.125 * 0.875 / counts.sum()) ** 0.5


def test_a_shared_pool_is_drawn_alike_by_all_clients():
    pool = EIGHT.model_copy(update={"shared": True})
    drawn = [pool.of(order(c, 3, params(0))).members for c in range(3)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert EIGHT.of(order(1, 3, params(0))).members != drawn[1]


TWO_RATES = {**POOLED, "optimiser": Sgd(lr=0.02, head_lr=0.3)}


@pytest.mark.parametrize(
    "settings",
    [POOLED, EXACT_HEAD, TWO_RATES],
    ids=["all", "exact head", "two rates"],
)
def test_sums_of_slopes_are_the_steps(settings):
    """baselines 10.2: rebuilt from the first values, the run is that of step by step, 1e-14."""
    plain, _ = play(star(**settings, dtype=DOUBLE, by_records=False, cohort=6), 5, _start())
    sums, _ = play(
        star(**settings, dtype=DOUBLE, by_records=False, cohort=6, by_sums=True), 5, _start()
    )
    moved = trees.subtract(plain.params, params(dtype=DOUBLE))
    error = trees.norm(trees.subtract(plain.params, sums.params))
    assert trees.norm(moved) > 0.1 and error < 1e-13 * trees.norm(plain.params)


def _start():
    return RunState(0, params(dtype=DOUBLE))


def test_the_run_stays_in_the_dimensions_of_its_pool():
    """baselines 10.1."""
    loop = star(**POOLED, dtype=DOUBLE, by_records=False, by_sums=True)
    state, rows = _start(), []
    for _ in range(12):
        state, _ = loop.round(state)
        rows.append(trees.flatten(trees.subtract(state.params, params(dtype=DOUBLE))))
    singular = torch.linalg.svdvals(torch.stack(rows))
    assert singular[7] > 1e-3 * singular[0] and singular[8] < 1e-12 * singular[0]


@pytest.mark.parametrize(
    "settings",
    [
        POOLED,
        EXACT_HEAD,
        {**POOLED, "directions": Pool(k=2, distribution="gauss16", head_k=4, shared=True)},
        {"engine": Backprop(), "directions": Pool(k=4, head_k=3)},
        {
            "engine": FiniteDifference(head="perturbed"),
            "directions": Pool(size=8),
            "faults": {"offline": 0.5},
        },
        TWO_RATES,
    ],
    ids=["own", "exact head", "shared", "projected", "lossy", "two rates"],
)
def test_whoever_follows_sums_or_records_holds_the_servers_bits(settings):
    pool = settings["directions"].model_copy(
        update={"size": 64}
    )  # so that some records are shorter
    loop = star(**{**settings, "directions": pool}, by_sums=True, max_steps=2)
    state, kinds = RunState(0, params()), set()
    for number in range(1, 9):
        before = state
        for asked in loop.plan(state).values():
            assert asked.missed is not None  # no parameter ever travels
            kinds.add(asked.missed == loop.server.missed(state, 999))
            assert len(asked.missed + encode_order(asked)) < 1500
        state, report = loop.round(state)
        kept = loop.transport.replica.state
        assert kept.round == before.round == number - 1
        assert trees.digest(kept.params) == trees.digest(before.params)
        assert report.bytes_down < 2 * 1500
    assert kinds == {True, False}
    assert trees.digest(state.params) != trees.digest(params())


def test_a_newcomer_needs_the_sums_alone():
    loop = star(**POOLED, by_sums=True)
    state, _ = play(loop, 6)
    late = type(loop.transport.replica)(loop.server, RunState(0, params()))
    late.catch_up(loop.server.missed(state, 999))
    assert trees.digest(late.state.flat()) == trees.digest(state.flat())
    foreign = encode_record(RoundRecord(7, (), {"tail": torch.zeros(8).double()}), params())
    with pytest.raises(ProtocolError, match="'tail' that this run does not have"):
        late.catch_up(foreign)
    plain = star(**POOLED)
    with pytest.raises(ProtocolError, match="round 6 after round 0"):
        newcomer = type(late)(plain.server, RunState(0, params()))
        newcomer.catch_up(loop.server.missed(state, 999))


def test_sums_leave_out_what_is_not_finite():
    like = params(0)
    (group,) = groups_of(ENGINE, Scalars(), order(1, 3, like), HEAD, EIGHT).values()
    slopes = torch.tensor([[1.0, float("nan")], [float("inf"), float("nan")], [2.0, 4.0]])
    expected = np.zeros(8)
    expected[group.directions.at(0).members[0]] += 1.0
    for member, slope in zip(group.directions.at(2).members, (2.0, 4.0), strict=True):
        expected[member] += slope / 2
    assert group.directions.sums(slopes).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "setting",
    [
        "client.optimiser.weight_decay=0.01",
        "client.optimiser.momentum=0.9",
        "client.proximal=0.1",
        "server=adam",
        "server.lr=0.5",
        "server_schedule=linear",
        'client.optimiser.schedule=["cosine"]',
        "trigger=variance",
    ],
)
def test_what_sums_cannot_tell_is_refused(setting, world: World, tmp_path):
    """baselines 10.3: with weight decay the rebuild would be off by 1 %."""
    with pytest.raises(UserError, match=r"download\.kind = 'pool': sums of slopes"):
        world.run(tmp_path, "strategy=fedkseed", setting)
    assert not (tmp_path / "run").exists()
