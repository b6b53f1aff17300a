"""Shared directions and records: averaged slopes, clients that follow, and what it costs."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import forefed.federation.star as star_module
from forefed.aggregate import Mean
from forefed.assign import Contiguous
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import Order, Reply, ServerContext, Update
from forefed.directions import Candidates, Fresh
from forefed.federation.replica import Replica
from forefed.federation.slopes import average_slopes
from forefed.federation.star import RunState
from forefed.federation.state import RunState as State
from forefed.gradients.backprop import Backprop
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.local.groups import groups_of, rebuild
from forefed.modifiers import Curvature, LastUpdate
from forefed.optimisers import Adam
from forefed.trigger import VarianceTrigger
from forefed.wire import Dense, Scalars
from forefed.wire.orders import encode_broadcast, encode_order
from forefed.wire.records import Entry, RecordLog, RoundRecord, decode_record, encode_record
from shared import FLOAT, Deaf, params, play, star
from toy import HEAD, SIZES, ToyLoss, toy_clients

DOUBLE = torch.float64
ENGINE, SHARED = Forward(), Fresh(k=3, head_k=4, shared=True)


def order(client, number=1, like=None, memo=None):
    like = like if like is not None else params(0)
    return Order(4, number, client, tuple(like), like, memo or {})


# Directions


@pytest.mark.parametrize("engine", [ENGINE, Backprop()], ids=lambda e: e.kind)
def test_clients_of_a_round_share_every_direction_and_no_other_round_has_them(engine):
    codec, like = Scalars(), params(0)

    def directions(client, number, step, shared=True):
        groups = groups_of(
            engine, codec, order(client, number), HEAD, Fresh(k=2, head_k=2, shared=shared)
        )
        assert groups.keys() == {"body", "head"}
        return trees.digest(
            {
                f"{name}/{n}": x
                for name, group in groups.items()
                for n, x in group.directions.at(step)
                .tangents(trees.pick(like, group.names), range(2))
                .items()
            }
        )

    assert directions(1, 3, 0) == directions(2, 3, 0)
    different = [(1, 3, 0), (1, 4, 0), (1, 3, 1)]
    assert len({directions(*which) for which in different}) == 3
    assert directions(1, 3, 0, shared=False) != directions(2, 3, 0, shared=False)
    assert directions(1, 3, 0, shared=False) != directions(1, 3, 0)


def test_averaged_slopes_are_the_slopes_of_the_pooled_loss():
    """scalar_channel 11.5: their mean, rebuilt, is the forward gradient of the mean loss."""
    like, loss = params(0, DOUBLE), Deaf(ToyLoss())
    engine = Forward(head="perturbed")
    clients = toy_clients()
    directions = SHARED.of(order(0, like=like))
    batches = [c.examples.batch(c.train) for c in clients if len(c.train)]
    slopes = [engine(loss, like, batch, directions).slopes_K for batch in batches]
    mean = sum(b.size * s for b, s in zip(batches, slopes, strict=True)) / sum(SIZES)
    pooled = engine(loss, like, clients[0].examples.batch(range(sum(SIZES))), directions)
    ours, whole = (directions.combine(like, s) for s in (mean, pooled.slopes_K))
    assert trees.norm(trees.subtract(ours, whole)) < 1e-12 * trees.norm(whole)


def test_averaging_slopes_equals_averaging_models():
    """baselines 11.1, over unequal numbers of local steps. (Slopes of few bits and weights with a
    sum of 8, so that the average is a float32.)"""
    loop = star(ENGINE, directions=SHARED, ballast=0, dtype=DOUBLE, by_records=False)
    start = State(0, params(0, DOUBLE))
    orders = {c: order(c, like=start.params) for c in range(3)}
    updates = [
        Update(c, n, None, _round_slopes(c, steps))
        for c, n, steps in ((0, 3, 2), (1, 1, 5), (2, 4, 1))
    ]
    done = loop.server.finish(start, orders, updates)
    averaged, record = done.state, done.record
    assert len(record.entries) == 1 and len(record.entries[0].slopes["body"]) == 5
    each = dataclasses.replace(loop.server, averages_slopes=False)
    rebuilt = [each.rebuild(orders[u.client], u) for u in updates]
    separate = each.finish(start, orders, rebuilt).state
    moved = trees.subtract(separate.params, start.params)
    error = trees.subtract(averaged.params, separate.params)
    assert trees.norm(moved) > 0.01 and trees.norm(error) < 1e-12 * trees.norm(moved)


def _round_slopes(client, steps):
    return {
        group: (16 * Key(client).fold(group).normal((steps, k))).round() / 16
        for group, k in (("body", 3), ("head", 4))
    }


def test_averages_by_hand():
    a = {"body": torch.tensor([[1.0, 2.0], [4.0, 8.0]])}
    b = {"body": torch.tensor([[5.0, float("nan")], [0.0, 4.0], [3.0, 6.0]])}
    entries = [Entry(2, 3, ("w",), b), Entry(1, 1, ("w",), a), Entry(0, 5, ("v",), a)]
    _, averaged, _, _ = average_slopes(
        Mean(), {}, sorted(entries, key=lambda e: e.client), ServerContext(round=1, key=Key(1))
    )
    assert [(e.client, e.n_examples, e.assigned) for e in averaged] == [
        (0, 5, ("v",)),
        (1, 4, ("w",)),
    ]
    # 1/4 of a, 3/4 of b; b's first step is not finite, a has no third one
    assert averaged[1].slopes["body"].tolist() == [[0.25, 0.5], [1.0, 5.0], [2.25, 4.5]]
    assert averaged[1].slopes["body"].dtype == FLOAT


def test_a_slope_beyond_all_gradients_loses_the_answer():
    loop = star(ENGINE, directions=SHARED, cohort=6)
    client = loop.transport.client

    def absurd(*asked):
        update, state = client(*asked)
        slopes = {g: x if update.client else x * 1e36 for g, x in update.slopes.items()}
        return dataclasses.replace(update, slopes=slopes), state

    broken = dataclasses.replace(loop, transport=dataclasses.replace(loop.transport, client=absurd))
    state, (report,) = play(broken, 1)
    assert [(x.client, x.reason) for x in report.lost] == [(0, "transport")]
    assert "larger than 1e+30" in report.lost[0].detail and trees.all_finite(state.params)


# Clients that follow

OWN = {"directions": Fresh(k=2, head_k=4)}
FOLLOWING = {
    "shared": {},
    "shared, one step": {"max_steps": 1},
    "shared, moments at the server": {"server": Adam()},
    "shared, curvature": {"modifiers": (Curvature(),)},
    "shared, collected": {"trigger": VarianceTrigger(ratio=0.5, at_most=3)},
    "shared, split": {"assign": Contiguous(), "cohort": 4},
    "shared, projected": {"engine": Backprop()},
    "own": {**OWN, "server": Adam(), "modifiers": (Curvature(),)},
    "own, selected": {
        "engine": FiniteDifference(),
        "directions": Candidates(k=2, distribution="gauss16", count=3, head_k=4),
        "modifiers": (LastUpdate(),),
    },
    "own, collected": {**OWN, "trigger": VarianceTrigger(at_most=5)},
    "lossy": {"faults": {"crash": 0.3, "offline": 0.3}},
}


@pytest.mark.parametrize("case", FOLLOWING)
def test_whoever_follows_the_records_holds_the_servers_bits(case):
    """baselines 11.2; and the run is that of clients who receive the parameters every time."""
    settings = {"engine": ENGINE, "directions": SHARED, **FOLLOWING[case]}
    loop = star(**settings)
    state, followed = RunState(0, params()), 0
    for _ in range(8):
        before = state
        followed += any(o.missed is not None for o in loop.plan(state).values())
        state, report = loop.round(state)
        kept = loop.transport.replica.state
        assert kept.round == before.round
        assert trees.digest(kept.flat()) == trees.digest(before.flat())
        assert {x.reason for x in report.lost} <= {"crash", "offline"}
    assert followed >= 4
    plain, _ = play(star(**settings, by_records=False), 8)
    assert trees.digest(plain.flat()) == trees.digest(state.flat())
    assert trees.digest(state.params) != trees.digest(params())


def test_a_late_joiner_repeats_everything_from_the_first_values(monkeypatch):
    """scalar_channel 11.4: the base and the log are the whole run."""
    written = []

    def spy(record, names):
        written.append(encode_record(record, names))
        return written[-1]

    monkeypatch.setattr(star_module, "encode_record", spy)
    loop = star(ENGINE, directions=SHARED, modifiers=(Curvature(),))
    state, _ = play(loop, 34)  # some 100 local steps
    late = Replica(loop.server, RunState(0, params()))
    late.catch_up(b"".join(written))
    assert trees.digest(late.state.flat()) == trees.digest(state.flat())
    with pytest.raises(ProtocolError, match="round 21 after round 19"):
        late = Replica(loop.server, RunState(0, params()))
        late.catch_up(b"".join(written[:19] + written[20:]))


def test_bytes_down_are_those_of_each_clients_own_absence(monkeypatch):
    sizes = {}

    def spy(record, names):
        data = encode_record(record, names)
        sizes[record.round] = len(data)
        return data

    monkeypatch.setattr(star_module, "encode_record", spy)
    loop = star(ENGINE, directions=SHARED, faults={"crash": 0.2}, max_steps=1)
    state, visits, kinds = RunState(0, params()), {}, set()
    for number in range(1, 26):
        orders = loop.plan(state)
        outcomes = []
        state, _ = loop.round(state, outcomes.append)
        for outcome in outcomes:
            asked = orders[outcome.client]
            missed = [sizes[r] for r in range(visits.get(outcome.client, 0), number) if r]
            whole = len(encode_broadcast(asked))
            follows = outcome.client in visits and sum(missed) < 4 * trees.size(state.params)
            expected = (sum(missed) if follows else whole) + len(encode_order(asked))
            kinds.add(follows)
            if (
                asked.missed is None and follows
            ):  # the log is kept while it is fewer bytes as a whole
                assert sum(sizes[r] for r in range(visits[outcome.client], number)) > 3500
            else:
                assert outcome.bytes_down == expected <= whole + len(encode_order(asked))
            if isinstance(outcome, Reply):
                visits[outcome.client] = number
    assert kinds == {True, False}


def test_traffic_does_not_depend_on_the_number_of_parameters():
    seen = []
    for ballast in (1000, 50_000):
        loop = star(ENGINE, directions=SHARED, ballast=ballast, cohort=6)
        _, reports = play(loop, 3, ballast=ballast)
        seen.append([(r.bytes_up, r.bytes_down) for r in reports[1:]])
    small, large = seen
    for (up, down), (up_large, down_large) in zip(small, large, strict=True):
        assert abs(up - up_large) < 20 and down == down_large


def test_the_log_is_fewer_bytes_than_the_parameters():
    log = RecordLog()
    for number in range(1, 10):
        log = log.after(number, bytes(30), [number % 3], 100)
        assert sum(map(len, log.records.values())) < 100
    assert list(log.records) == [7, 8, 9] and log.visits == {0: 9, 1: 7, 2: 8}
    assert len(log.missed(1)) == 90 and len(log.missed(0)) == 30 and log.missed(5) is None
    again = RecordLog.of_tensors(log.tensors())
    assert again == log and RecordLog.of_tensors(RecordLog().tensors()) == RecordLog()
    assert log.after(10, bytes(200), [1], 100) == RecordLog()  # one round weighs more than all
    with_old = RecordLog({1: b"x"}, {7: 1})
    assert with_old.after(2, bytes(99), [8], 100).visits == {8: 2}


# Records

NAMES = ("a", "b", "c", "d", "e")
ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 2**40),
        st.integers(1, 2**30),
        st.lists(st.sampled_from(NAMES), unique=True, min_size=1),
        st.integers(1, 3),
        st.integers(1, 4),
    ),
    max_size=4,
)


@given(ENTRIES, st.integers(1, 2**31))
def test_records_come_back(raw, number):
    entries = tuple(
        Entry(c, n, tuple(assigned), {"body": Key(i).normal((t, k)), "head": Key(9).normal((t, 2))})
        for i, (c, n, assigned, t, k) in enumerate(raw)
    )
    found = decode_record(encode_record(RoundRecord(number, entries), NAMES), NAMES[::-1])
    assert found.round == number and len(found.entries) == len(entries)
    for a, b in zip(found.entries, entries, strict=True):
        assert (a.client, a.n_examples, a.assigned) == (b.client, b.n_examples, b.assigned)
        assert trees.digest(a.slopes) == trees.digest(b.slopes)


def test_a_damaged_record_is_refused():
    record = RoundRecord(3, (Entry(1, 2, ("b", "c"), {"body": torch.ones(1, 2)}),))
    data = encode_record(record, NAMES)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        with pytest.raises(ProtocolError):
            decode_record(bytes(damaged), NAMES)
    with pytest.raises(ProtocolError, match=r"cannot be read.*\[1, 3\) of 2 parameters"):
        decode_record(data, NAMES[:2])
    replica = Replica(
        star(ENGINE, directions=SHARED).server, State(3, dict.fromkeys(NAMES, torch.zeros(1)))
    )
    with pytest.raises(ProtocolError, match="no whole Forefed message"):
        replica.catch_up(data + b"FFED")


def test_more_clients_do_not_quieten_shared_directions():
    """Own directions: the error falls as 1/n. Shared: it stays (scalar_channel 6)."""
    errors = {}
    for shared in (True, False):
        engine = Forward(head="perturbed")
        total = 0.0
        for number in range(30):
            found = []
            for client in range(8):
                asked = order(client, number, params(0, DOUBLE))
                groups = groups_of(engine, Dense(), asked, HEAD, Fresh(shared=shared))
                gradient = {n: torch.ones_like(x) for n, x in asked.params.items()}
                slopes = {g: groups[g].directions.project(gradient) for g in groups}
                found.append(rebuild(slopes, groups, asked.params, 0))
            mean = {n: sum(f[n] for f in found) / 8 for n in found[0]}
            total += trees.norm(trees.subtract(mean, gradient)) ** 2
        errors[shared] = total / 30 / trees.norm(gradient) ** 2
    d = trees.size(params(0))
    assert errors[True] == pytest.approx(d - 1, rel=0.4)
    assert errors[False] == pytest.approx((d - 1) / 8, rel=0.4)
