"""Golden vectors and laws of the keyed generator (any change of a value breaks old runs)."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forefed.core.keys import Key, directions_together, gauss16_table, philox
from forefed.core.philox import FEW
from forefed.directions import sets
from forefed.directions.sets import RandomDirections

KNOWN_ANSWERS = [  # counter, key, output: Salmon et al. 2011, philox4x32-10
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    block = philox(np.array([words(counter)], dtype=np.uint32), tuple(words(key)))
    assert block[0].tolist() == words(expected)


def test_few_blocks_are_those_of_many():
    key = Key(2**63 + 12345)
    many = key.blocks(2**40, 3 * FEW, 5, 2**31)
    few = [key.blocks(2**40 + i, min(FEW, 7), 5, 2**31) for i in range(0, 3 * FEW, 7)]
    assert np.array_equal(np.concatenate(few)[: len(many)], many)


def test_quantile_table_is_the_published_one():
    table = gauss16_table().astype("<f4")
    assert hashlib.sha256(table.tobytes()).hexdigest() == (
        "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"
    )
    wide = table.astype(np.float64)
    assert abs((wide**2).mean() - 1) < 1e-8
    assert abs((wide**4).mean() - 2.9992) < 1e-4


def test_direction_golden_vector():
    key = Key.direction("C", run=1, round=0, stream=7, name="layer.0.q.A")
    assert key.value == 0xDC60B354_2CF63CDA
    assert key.blocks(0, 1)[0].tolist() == words("d9513fff 0e560a4a ad44a7bf 8783b60a")
    normal = key.normal((4,)).numpy()
    np.testing.assert_allclose(
        normal, [-0.67452061, 1.03173685, -1.74839592, -1.58921826], rtol=1e-7
    )
    assert key.rademacher((16,)).tolist() == [1.0] * 14 + [-1.0] * 2


def test_fold_golden_vectors():
    key = Key(0).fold("client", 3, 5)
    assert key.value == 0xF0B3859FD05EE215
    assert key != Key(0).fold("client", 5, 3)
    assert key != Key(0).fold("client", "3", 5)
    assert key != Key(0).fold("client").fold(3).fold(5)


def test_drawing_golden_vectors():
    key = Key(42).fold("data", 0)
    assert key.permutation(8).tolist() == [5, 4, 2, 1, 0, 3, 6, 7]
    assert key.choice(1000, 4) == [165, 389, 586, 965]
    assert key.integers(4, 100).tolist() == [58, 16, 38, 96]
    assert key.uniform((2,)).tolist() == [0.5878766179084778, 0.16617953777313232]


def test_values_do_not_depend_on_global_generators():
    before = Key(9).fold("x").normal((100,))
    torch.rand(17)
    np.random.default_rng(1).random(3)
    assert torch.equal(before, Key(9).fold("x").normal((100,)))


@given(st.integers(0, 2**64 - 1), st.integers(1, 300), st.integers(0, 200))
def test_a_slice_of_uniform_equals_the_slice_of_the_whole(value, size, offset):
    key = Key(value)
    whole = key.uniform((offset + size,))
    assert torch.equal(key.uniform((size,), offset=offset), whole[offset:])
    assert float(whole.min()) >= 0 and float(whole.max()) < 1


@given(st.integers(0, 2**64 - 1), st.integers(1, 200))
def test_permutation_holds_every_number_once(value, n):
    assert sorted(Key(value).permutation(n).tolist()) == list(range(n))


def test_many_blocks_are_those_of_their_parts():
    whole = Key(7).blocks(5, 40_000, 1, 2)
    parts = [Key(7).blocks(5 + done, 8_000, 1, 2) for done in range(0, 40_000, 8_000)]
    assert np.array_equal(whole, np.concatenate(parts))


@given(st.integers(0, 2**64 - 1), st.integers(1, 10**9), st.data())
def test_choice_is_distinct_and_in_range_for_any_population(value, n, data):
    count = data.draw(st.integers(0, min(n, 50)))
    chosen = Key(value).choice(n, count)
    assert len(set(chosen)) == count
    assert all(0 <= c < n for c in chosen)


def test_choice_is_fair():
    counts = np.zeros(10)
    for i in range(4000):
        counts[Key(1).fold(i).choice(10, 3)] += 1
    assert np.abs(counts / 4000 - 0.3).max() < 4 * (0.3 * 0.7 / 4000) ** 0.5


@pytest.mark.parametrize("law", ["rademacher", "gauss16"])
def test_directions_of_other_labels_are_uncorrelated(law):
    d = 4096
    base = ("C", 1, 2, 3, "w")
    first = Key.direction(*base).direction_values(law, (d,), 0, 0)
    others = [
        Key.direction("G", 1, 2, 3, "w").direction_values(law, (d,)),
        Key.direction("C", 2, 2, 3, "w").direction_values(law, (d,)),
        Key.direction("C", 1, 3, 3, "w").direction_values(law, (d,)),
        Key.direction("C", 1, 2, 4, "w").direction_values(law, (d,)),
        Key.direction("C", 1, 2, 3, "u").direction_values(law, (d,)),
        Key.direction(*base).direction_values(law, (d,), 1, 0),
        Key.direction(*base).direction_values(law, (d,), 0, 1),
    ]
    assert abs(float((first**2).mean()) - 1) < 0.1
    for other in others:
        assert abs(float(first @ other)) / d < 5 / d**0.5


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_a_key_is_64_bits(bad):
    with pytest.raises(ValueError, match="64-bit"):
        Key(bad)


@pytest.mark.parametrize("law", ["rademacher", "gauss16"])
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (129,), (3, 5), (200, 90)])
def test_stacked_directions_are_the_single_ones(law, shape):
    key, ks = Key(2**63 + 5), [0, 5, 2, 2**31]
    stacked = key.directions(law, shape, 3, ks)
    for values, k in zip(stacked, ks, strict=True):
        assert torch.equal(values, key.direction_values(law, shape, 3, k))
    assert key.directions(law, shape, 3, []).shape == (0, *shape)
    many = key.directions(law, shape, 1, range(300))  # more than one call of the cipher
    assert torch.equal(many[299], key.direction_values(law, shape, 1, 299))


@pytest.mark.parametrize("law", ["rademacher", "gauss16"])
@pytest.mark.parametrize("sizes", [(64, 64, 64), (1, 200, 128, 9)])
def test_directions_of_several_tensors_are_those_of_each(law, sizes):
    keys = [Key.direction("C", 7, 3, 12, f"block.{i}") for i in range(len(sizes))]
    together = directions_together(keys, sizes, law, 2, [0, 3, 5])
    alone = [k.directions(law, (n,), 2, [0, 3, 5]) for k, n in zip(keys, sizes, strict=True)]
    assert torch.equal(together, torch.cat(alone, 1))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_an_estimate_of_small_parameters_has_the_bits_of_one_by_one(kind, monkeypatch):
    like = {f"p{i}": torch.zeros(shape, dtype=kind) for i, shape in enumerate([(8, 3), (5,), (9,)])}
    slopes = torch.tensor([0.3, float("nan"), -2e5, 1e-7])
    drawn = RandomDirections(1, 2, 3, 4, "gauss16", scale={"p1": torch.full((5,), 0.5)})
    together = drawn.combine(like, slopes)
    monkeypatch.setattr(sets, "SMALL", 0)
    alone = drawn.combine(like, slopes)
    assert [*together] == [*alone] == [*like]
    assert all(torch.equal(together[n], alone[n]) and together[n].dtype == kind for n in like)


@pytest.mark.parametrize("law", ["rademacher", "gauss16"])
@pytest.mark.parametrize("at_once, kind", [(1 << 17, torch.float32), (200, torch.float64)])
def test_estimates_of_all_steps_have_the_bits_of_step_by_step(law, at_once, kind, monkeypatch):
    like = {f"p{i}": torch.zeros(shape, dtype=kind) for i, shape in enumerate([(8, 3), (5,), (9,)])}
    drawn = RandomDirections(1, 2, 3, 4, law)
    slopes = Key(5).normal((7, 4)) * torch.tensor([0.3, 2e9, -2e5, 1e-7])
    monkeypatch.setattr(sets, "ELEMENTS_AT_ONCE", at_once)
    together = drawn.combine_steps(like, slopes)
    assert together is not None and together.shape == (7, 38) and together.dtype == kind
    for step in range(7):
        alone = drawn.at(step).combine(like, slopes[step])
        assert torch.equal(together[step], torch.cat([x.flatten() for x in alone.values()]))


@pytest.mark.parametrize("why", ["shaped", "infinite", "bfloat16", "mixed", "empty"])
def test_what_is_left_to_step_by_step(why):
    like = {"a": torch.zeros(3), "b": torch.zeros(0 if why == "empty" else 2)}
    if why in ("bfloat16", "mixed"):
        like["a"] = like["a"].bfloat16() if why == "bfloat16" else like["a"].double()
    slopes = torch.ones(2, 4)
    slopes[1, 2] = float("inf") if why == "infinite" else 1.0
    drawn = RandomDirections(1, 2, 3, 4, scale={"a": torch.ones(3)} if why == "shaped" else {})
    assert drawn.combine_steps(like, slopes) is None
