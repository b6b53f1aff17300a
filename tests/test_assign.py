"""Assignments cover every unit and every client, balance, rotate; replica counts by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forefed.assign import ASSIGNS, Contiguous, Cyclic, Everything, balanced_runs, replicas
from forefed.core.keys import Key
from forefed.core.types import Unit
from toy import toy_units


def units_of(sizes):
    return [Unit(f"u{i}", (f"u{i}",), i, size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("assign", [Contiguous(), Cyclic()], ids=lambda a: a.kind)
def test_every_unit_and_every_position_for_all_counts(assign):
    for u in range(1, 41):
        for m in range(1, 41):
            positions = assign.positions([1 + i % 3 for i in range(u)], m)
            assert len(positions) == m
            assert all(positions)
            assert {i for p in positions for i in p} == set(range(u))
            if assign.kind == "cyclic":
                counts = [len(p) for p in positions]
                assert max(counts) - min(counts) <= 1


def test_cyclic_is_the_published_map():
    assert Cyclic().positions([1] * 5, 2) == [(0, 2, 4), (1, 3)]
    assert Cyclic().positions([1] * 2, 5) == [(0,), (1,), (0,), (1,), (0,)]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=25), st.data())
def test_contiguous_runs_are_neighbours_and_no_cut_is_better(sizes, data):
    m = data.draw(st.integers(1, len(sizes)))
    runs = balanced_runs(sizes, m)
    assert [i for run in runs for i in run] == list(range(len(sizes)))
    largest = max(sum(sizes[i] for i in run) for run in runs)
    assert largest == best_bound(sizes, m)


def best_bound(sizes, m):
    """The smallest possible largest run, by dynamic programming over all cuts."""
    prefix = [0]
    for size in sizes:
        prefix.append(prefix[-1] + size)
    bounds = [prefix[i] for i in range(len(prefix))]
    for _ in range(m - 1):
        bounds = [
            min(max(bounds[j], prefix[i] - prefix[j]) for j in range(i + 1))
            for i in range(len(prefix))
        ]
    return bounds[-1]


def test_replicas_by_hand():
    assert replicas([1, 4, 9, 100], 32) == [2, 4, 6, 20]
    variance = sum(a / r for a, r in zip([1, 4, 9, 100], [2, 4, 6, 20], strict=True))
    assert variance == 8.0  # an equal split, 8 each, gives 14.25
    assert sum(replicas([5, 1, 1000], 3)) == 3


def test_the_head_goes_to_everyone_or_is_a_unit():
    units = toy_units()
    shared = Contiguous().names(units, 3, Key(1))
    assert all("head.weight" in names for names in shared)
    alone = Contiguous(head="unit", rotate=False).names(units, 4, Key(1))
    assert sum("head.weight" in names for names in alone) == 1


def test_rotation_depends_on_the_round_key_and_can_be_switched_off():
    units = units_of([1] * 8)
    drawn = {tuple(Contiguous().names(units, 8, Key(r))) for r in range(20)}
    assert len(drawn) > 15
    fixed = {tuple(Contiguous(rotate=False).names(units, 8, Key(r))) for r in range(20)}
    assert len(fixed) == 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_copies_give_every_unit_to_that_many_clients(u, m, copies):
    units = units_of([1] * u)
    names = Contiguous(replicas=copies).names(units, m, Key(3))
    assert len(names) == m
    for unit in units:
        held = sum(unit.name in assigned for assigned in names)
        assert held >= min(copies, m)


def test_everything_is_everything():
    units = toy_units()
    names = Everything().names(units, 2, Key(1))
    assert names == [tuple(n for u in units for n in u.params)] * 2


@pytest.mark.parametrize("kind", ASSIGNS.kinds())
def test_a_model_of_one_head_alone_works(kind):
    head = [Unit("head", ("w",), 0, 4, is_head=True)]
    assert ASSIGNS[kind]().names(head, 3, Key(0)) == [("w",)] * 3
