"""Who holds what: every example once, the same for the same key, and errors with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.settings import parse
from forefed.data.examples import Examples
from forefed.data.partition import (
    PARTITIONS,
    Bootstrap,
    Dirichlet,
    Iid,
    Natural,
    Partition,
    Pathological,
    Shards,
    Sites,
)
from forefed.data.population import Population
from forefed.data.prepare import prepare
from forefed.data.settings import DataSettings
from forefed.data.shares import Assigned, Drawn, dirichlet, log_gamma_variates
from words import all_of, tokenizer

KEY = Key(11)
LABELS = np.arange(60) % 3


def rows_of(shares: Any) -> list[list[int]]:
    return [shares.rows(c).tolist() for c in range(shares.size)]


def population(shares: Any, n: int = 60, fraction: float = 0.2) -> Population:
    ones = np.ones(n, dtype=np.int64)
    examples = Examples(
        tokens=np.arange(n, dtype=np.int32),
        types=None,
        offsets=np.arange(n + 1),
        labels=np.arange(n) % 3,
        n_bytes=ones,
        pad_id=0,
    )
    return Population("test", examples, shares, KEY, fraction, ("x", "y", "z"))


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=60),
    st.integers(1, 4),
    st.integers(0, 2**64 - 1),
)
def test_every_example_exactly_once(labels: list[int], clients: int, value: int) -> None:
    key, y = Key(value), np.array(labels)
    owners = [f"owner {i % clients}" for i in range(len(labels))]
    partitions = (
        Iid(clients=clients),
        Dirichlet(clients=clients, alpha=5.0, min_size=0),
        Shards(clients=clients, shards_per_client=2),
        Natural(),
    )
    for partition in partitions:
        shares = partition.split(y, owners, key)
        assert shares.size == clients and shares.dropped == 0, partition
        assert all_of(rows_of(shares)) == list(range(len(labels))), partition
        assert rows_of(shares) == rows_of(partition.split(y, owners, key)), partition


def test_another_key_gives_other_shares() -> None:
    for partition in (
        Iid(clients=5),
        Dirichlet(clients=5),
        Pathological(clients=5),
        Shards(clients=5),
        Bootstrap(clients=5, examples_per_client=10),
        Bootstrap(clients=5, examples_per_client=10, alpha=1.0),
    ):
        a, b = (rows_of(partition.split(LABELS, None, Key(v))) for v in (1, 2))
        assert a != b, partition
        assert rows_of(partition.split(LABELS, None, Key(1))) == a, partition


def test_no_global_generator_is_touched() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 (looked at, not used)
    for entry in PARTITIONS:
        more = {"names": ("a", "b")} if entry is Sites else {"clients": 4}
        more |= {"examples_per_client": 9} if entry is Bootstrap else {}
        entry(**more).split(LABELS, [str(i % 7) for i in range(60)], KEY)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_iid_is_even_and_shuffled() -> None:
    rows = rows_of(Iid(clients=7).split(LABELS, None, KEY))
    assert sorted(map(len, rows)) == [8, 8, 8, 9, 9, 9, 9]
    assert rows[0] != list(range(len(rows[0])))


@settings(max_examples=10)
@given(st.integers(0, 5), st.integers(0, 2**32))
def test_dirichlet_keeps_the_minimum(min_size: int, value: int) -> None:
    shares = Dirichlet(clients=6, alpha=2.0, min_size=min_size).split(LABELS, None, Key(value))
    assert min(map(len, rows_of(shares))) >= min_size


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 1e6])
def test_dirichlet_at_the_ends_of_alpha(alpha: float) -> None:
    rows = rows_of(Dirichlet(clients=6, alpha=alpha, min_size=0).split(LABELS, None, KEY))
    assert all_of(rows) == list(range(60))
    if alpha == 1e6:
        assert max(map(len, rows)) - min(map(len, rows)) <= 3
    else:
        assert sorted(map(len, rows))[:3] == [0, 0, 0]


def test_dirichlet_alpha_makes_clients_unlike() -> None:
    labels = np.arange(3000) % 3

    def largest_part(alpha: float) -> float:
        shares = Dirichlet(clients=20, alpha=alpha, min_size=1).split(labels, None, KEY)
        counts = [np.bincount(labels[rows], minlength=3) for rows in rows_of(shares)]
        return float(np.mean([c.max() / c.sum() for c in counts]))

    assert largest_part(100.0) < 0.45 < 0.7 < largest_part(0.1)


def test_pathological_and_shards_limit_the_classes() -> None:
    labels = np.arange(1000) % 10
    for partition, most in (
        (Pathological(clients=20, classes_per_client=2), 2),
        (Shards(clients=20, shards_per_client=2), 4),
    ):
        rows = rows_of(partition.split(labels, None, KEY))
        assert max(len(np.unique(labels[r])) for r in rows) <= most
        assert len(all_of(rows)) == len(set(all_of(rows))) == 1000
    # Before it is cut, each class is shuffled: a shard is no run of neighbours.
    assert all(
        set(np.diff(r).tolist()) != {10}
        for r in rows_of(Shards(clients=50, shards_per_client=1).split(labels, None, KEY))
    )
    sizes = [len(r) for r in rows_of(Shards(clients=20).split(labels[:999], None, KEY))]
    assert set(sizes) <= {48, 49, 50}
    alone = Pathological(clients=2, classes_per_client=1, uncovered="drop")
    assert alone.split(labels, None, KEY).dropped == 800


@pytest.mark.parametrize(("clients", "each"), [(5, 2), (4, 3), (10, 1), (3, 4), (7, 9)])
def test_pathological_covers_every_class(clients: int, each: int) -> None:
    labels = np.arange(1000) % 10
    for value in range(5):
        shares = Pathological(clients=clients, classes_per_client=each).split(
            labels, None, Key(value)
        )
        held = [set(labels[rows].tolist()) for rows in rows_of(shares)]
        assert {len(c) for c in held} == {each} and set.union(*held) == set(range(10))
        assert shares.dropped == 0 and len(set(all_of(rows_of(shares)))) == 1000


FLOWERS: list[tuple[Partition, str, dict[str, Any]]] = [
    (Iid(clients=7), "IidPartitioner", {"num_partitions": 7}),
    *(
        (
            Dirichlet(clients=6, alpha=alpha, min_size=least),
            "DirichletPartitioner",
            {
                **{"num_partitions": 6, "partition_by": "label", "alpha": alpha, "seed": 0},
                **{"min_partition_size": least, "self_balancing": False},
            },
        )
        for alpha, least in ((0.1, 0), (1.0, 5), (1e6, 0), (1e-6, 0), (0.5, 9))
    ),
    *(
        (
            Pathological(clients=n, classes_per_client=each),
            "PathologicalPartitioner",
            {
                **{"num_partitions": n, "partition_by": "label", "seed": 0},
                "num_classes_per_partition": each,
                "class_assignment_mode": "first-deterministic",
            },
        )
        for n, each in ((6, 2), (9, 3), (4, 1))
    ),
    (Natural(), "NaturalIdPartitioner", {"partition_by": "owner"}),
]


@pytest.mark.parametrize(("ours", "name", "theirs"), FLOWERS)
@pytest.mark.filterwarnings("ignore")
def test_the_shares_are_those_of_flwr_datasets(
    ours: Partition, name: str, theirs: dict[str, Any]
) -> None:
    partitioner = pytest.importorskip("flwr_datasets.partitioner")
    datasets = pytest.importorskip("datasets")
    labels = np.array([0, 1, 2, 3] * 50 + [0] * 17)
    owners: list[str | None] = [f"o{i * i % 11}" for i in range(len(labels))]
    for value in (1, 2, 3):
        key = Key(value)
        order = key.fold("order").permutation(len(labels))
        if isinstance(ours, Natural):
            order = np.arange(len(labels))
        seed = {"seed": key.fold("flower").value} if "seed" in theirs else {}
        flower = getattr(partitioner, name)(**{**theirs, **seed})
        flower.dataset = datasets.Dataset.from_dict(
            {"row": order, "label": labels[order], "owner": [owners[i] for i in order]}
        )
        expected = [sorted(flower.load_partition(c)["row"]) for c in range(flower.num_partitions)]
        assert rows_of(ours.split(labels, owners, key)) == expected


def test_shards_are_dealt_out_as_flwr_datasets_does() -> None:
    partitioner = pytest.importorskip("flwr_datasets.partitioner")
    datasets = pytest.importorskip("datasets")
    flower = partitioner.ShardPartitioner(
        **{"num_partitions": 6, "partition_by": "label", "num_shards_per_partition": 3},
        **{"shard_size": 1, "seed": KEY.fold("flower").value},
    )
    flower.dataset = datasets.Dataset.from_dict({"row": range(18), "label": range(18)})
    expected = [sorted(flower.load_partition(c)["row"]) for c in range(6)]
    # Every class has as many examples as there are shards of it, so a shard is a class.
    labels = np.repeat(np.arange(18), 4)
    shares = rows_of(Shards(clients=6, shards_per_client=3).split(labels, None, KEY))
    assert [sorted(set(labels[rows].tolist())) for rows in shares] == expected


def test_classes_and_rows_left_to_nobody_are_refused_unless_asked_for() -> None:
    labels = np.arange(1800) % 20
    with pytest.raises(UserError, match=r"20 classes \(900 of 1,800 examples would belong to nobo"):
        Pathological(clients=5, classes_per_client=2).split(labels, None, KEY)
    owners: list[str | None] = [None, "a", "b"] * 20
    with pytest.raises(UserError, match="20 of 60 training rows have no owner in column 'who'"):
        Natural(column="who").split(LABELS, owners, KEY)
    assert Natural(unowned="drop").split(LABELS, owners, KEY).dropped == 20
    with pytest.raises(UserError, match="60 of 60 training rows have no owner"):
        Natural(unowned="drop").split(LABELS, [None] * 60, KEY)


def test_natural_minimum_and_cap() -> None:
    owners = ["big"] * 30 + ["mid"] * 20 + ["low"] * 9 + ["one"]
    shares = Natural().split(LABELS, owners, KEY)
    assert sorted(map(len, rows_of(shares))) == [1, 9, 20, 30]
    assert all(len({owners[i] for i in rows}) == 1 for rows in rows_of(shares))
    large = Natural(min_size=10).split(LABELS, owners, KEY)
    assert sorted(map(len, rows_of(large))) == [20, 30] and large.dropped == 10
    capped = Natural(clients=2).split(LABELS, owners, KEY)
    assert capped.size == 2 and capped.dropped == 60 - len(all_of(rows_of(capped)))


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (Dirichlet(clients=100), "partition.clients = 100 is more than the 60 training examples"),
        (Pathological(clients=61), 'partition.kind = "bootstrap"'),
        (Dirichlet(clients=6, min_size=11), "raise partition.alpha, lower partition.clients"),
        (
            Dirichlet(clients=50, alpha=1e-5, min_size=1),
            "no draw gave each of 50 clients 1 or more",
        ),
        (Iid(clients=61), "partition.clients = 61 is more than the 60 training examples"),
        (Pathological(clients=5, classes_per_client=4), "have 3 class(es); lower it"),
        (Pathological(clients=60, classes_per_client=3), "lower partition.clients or"),
        (Shards(clients=31), "31 clients of 2 shards need 62 examples, and there are 60"),
        (Natural(), "partition.column: this source names no owners"),
        (Bootstrap(examples_per_client=61), "partition.examples_per_client = 61"),
    ],
)
def test_impossible_partitions(partition: Partition, message: str) -> None:
    with pytest.raises(UserError) as error:
        partition.split(LABELS, None, KEY)
    assert message in str(error.value)


def test_natural_minimum_that_nobody_meets() -> None:
    with pytest.raises(UserError, match="the largest of 60 owners has 1 examples"):
        Natural(min_size=2).split(LABELS, [str(i) for i in range(60)], KEY)


def test_a_client_may_be_empty() -> None:
    people = population(Dirichlet(clients=50, alpha=0.1, min_size=0).split(LABELS, None, KEY))
    sizes = people.summary()["sizes"]
    assert sum(sizes) == 60 and 0 in sizes
    empty = people.client(sizes.index(0))
    assert len(empty.train) == len(empty.test) == 0


def test_clients_split_their_examples() -> None:
    owners = ["big"] * 40 + ["mid"] * 19 + ["one"]
    people = population(Natural().split(LABELS, owners, KEY))
    big, mid, one = (people.client(i) for i in range(3))
    assert (len(big.train), len(big.test)) == (32, 8)
    assert (len(mid.train), len(mid.test)) == (15, 4)
    assert (one.train.tolist(), len(one.test)) == ([59], 0)
    assert sorted([*big.train, *big.test]) == list(range(40))
    assert big.test.tolist() == people.client(0).test.tolist() != list(range(8))
    whole = population(people.shares, fraction=0.0).client(0)
    assert len(whole.train) == 40 and len(whole.test) == 0
    greedy = population(people.shares, fraction=0.99)
    assert [len(greedy.client(i).train) for i in range(3)] == [1, 1, 1]
    with pytest.raises(IndexError, match="client 3 of 3"):
        people.client(3)


def test_summary_by_hand() -> None:
    shares = Assigned.of([np.array([3, 0, 1]), np.array([], dtype=np.int64), np.array([4])], 6)
    summary = population(shares, n=6).summary()
    digest = summary.pop("digest")
    assert summary == {
        "kind": "test",
        "clients": 3,
        "labels": ["x", "y", "z"],
        "sizes": [3, 0, 1],
        "counts": [[2, 1, 0], [0, 0, 0], [0, 1, 0]],
        "shown": 3,
        "dropped": 2,
    }
    short = population(shares, n=6).summary(limit=1)
    assert (short["clients"], short["shown"], short["sizes"]) == (3, 1, [3])
    other = Assigned.of([np.array([3, 0, 2]), np.array([], dtype=np.int64), np.array([4])], 6)
    assert population(other, n=6).summary()["digest"] != digest != short["digest"]


class Watched(Drawn):
    """Counts the clients that are looked up."""

    def rows(self, client: int) -> Any:
        LOOKED_UP.append(client)
        return super().rows(client)


LOOKED_UP: list[int] = []


def test_a_million_clients_cost_what_is_looked_up() -> None:
    small, large = (
        Bootstrap(clients=n, examples_per_client=12, alpha=0.5).split(LABELS, None, KEY)
        for n in (10**3, 10**6)
    )
    assert isinstance(large, Drawn)
    people = population(Watched(**vars(large)))
    assert people.size == 10**6 and not LOOKED_UP
    people.client(999_999)
    assert LOOKED_UP == [999_999]
    # A client does not depend on how many others there are.
    assert small.rows(7).tolist() == large.rows(7).tolist() != large.rows(8).tolist()
    assert people.summary(limit=3)["shown"] == 3 and LOOKED_UP == [999_999, 0, 1, 2]


def test_bootstrap_clients_hold_different_rows_and_their_own_mix() -> None:
    labels = np.repeat(np.arange(4), [400, 300, 200, 100])
    for alpha, low, high in ((None, 0.35, 0.55), (100.0, 0.35, 0.55), (0.05, 0.85, 1.0)):
        shares = Bootstrap(examples_per_client=50, alpha=alpha).split(labels, None, KEY)
        rows = [shares.rows(c) for c in range(200)]
        assert all(len(r) == len(set(r.tolist())) <= 50 for r in rows)
        counts_CL = np.array([np.bincount(labels[r], minlength=4) for r in rows])
        assert low < np.mean(counts_CL.max(1) / counts_CL.sum(1)) < high, alpha
        mix = counts_CL.sum(0) / counts_CL.sum()
        np.testing.assert_allclose(mix, [0.4, 0.3, 0.2, 0.1], atol=0.12)
    uniform = Bootstrap(examples_per_client=1000).split(labels, None, KEY)
    assert uniform.rows(0).tolist() == list(range(1000))


@pytest.mark.parametrize("shape", [0.1, 1.0, 7.5])
def test_gamma_variates_have_the_right_moments(shape: float) -> None:
    # Mean and variance of a gamma law are both its shape; bounds of about four standard errors.
    n = 20_000
    x = np.exp(log_gamma_variates(np.full(n, shape), KEY))
    assert abs(x.mean() - shape) < 4 * np.sqrt(shape / n)
    fourth = 3 * shape**2 + 6 * shape
    assert abs(x.var() - shape) < 4 * np.sqrt((fourth - shape**2) / n)


def test_dirichlet_of_tiny_concentrations_is_one_class() -> None:
    weights = dirichlet(np.full(5, 1e-8), KEY)
    assert weights.sum() == pytest.approx(1.0) and weights.max() == pytest.approx(1.0)


def write_rows(path: Path, n: int) -> Path:
    path.write_text("text,label,who\n" + "".join(f"a b,{i % 2},w{i % 5}\n" for i in range(n)))
    return path


def test_prepare_end_to_end(tmp_path: Path) -> None:
    source = {"kind": "files", "path": str(write_rows(tmp_path / "rows.csv", 50))}
    data = parse(DataSettings, {"source": source, "task": "classification", "limit": 40})
    assert parse(DataSettings, data.model_dump(mode="json")) == data
    cache = tmp_path / "cache"
    made = prepare(data, Natural(column="who"), tokenizer(), KEY, cache)
    assert made.population.size == 5 and made.label_names == ("0", "1")
    assert made.counts["examples"] == 36 and len(made.test) == 4
    assert sum(made.population.summary()["sizes"]) == 36
    again = prepare(data, Natural(column="who"), tokenizer(), KEY, None)
    assert again.population.summary() == made.population.summary()
    assert again.provenance == made.provenance
    with pytest.raises(UserError, match="names no owners"):
        prepare(data, Natural(), tokenizer(), KEY, None)


def test_prepare_a_language_model(tmp_path: Path) -> None:
    source = {"kind": "files", "path": str(write_rows(tmp_path / "rows.csv", 50))}
    data = parse(DataSettings, {"source": source, "task": {"kind": "causal_lm", "text": "text"}})
    made = prepare(data, Dirichlet(clients=4), tokenizer(), KEY, None)
    assert made.label_names == () and made.test.causal
    summary = made.population.summary()
    assert summary["labels"] == [] == summary["counts"] and sum(summary["sizes"]) == 45


def test_settings_are_closed() -> None:
    with pytest.raises(UserError, match=r"max_lenght: unknown setting; did you mean 'max_length'"):
        parse(DataSettings, {"max_lenght": 5})
    with pytest.raises(UserError, match=r"partition\.alpha: .*greater than 0"):
        PARTITIONS.parse({"kind": "dirichlet", "alpha": 0})
    with pytest.raises(UserError, match="test_fraction"):
        parse(DataSettings, {"test_fraction": 1.0})
