"""Tree arithmetic: the finite check has no blind spot, digests see everything."""

import math

import pytest
import torch

from forefed.core import trees


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_seen(bad):
    x = torch.ones(3, 4)
    x[1, 2] = bad
    assert not trees.all_finite({"a": torch.ones(2), "b": x})
    x[0, 0] = -bad  # inf and -inf do not cancel
    assert not trees.all_finite({"b": x})


def test_a_sum_that_overflows_is_no_fault():
    assert trees.all_finite({"a": torch.full((4,), 3e38), "b": torch.zeros(0)})


def test_the_digest_sees_names_shapes_types_and_bits():
    base = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.float64)},
        {"a": torch.tensor([[0.0, 0, 0], [0, 0, 1e-30]])},
        {"a": torch.full((2, 3), -0.0)},
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"a": torch.full((2, 3), 1e-30, dtype=torch.bfloat16)},
    ]
    assert len({trees.digest(t) for t in [base, *others]}) == 8
    assert trees.digest({"a": torch.zeros(()).expand(0)}) == trees.digest({"a": torch.zeros(0)})
    assert trees.digest({"a": base["a"], "b": base["a"]}) == trees.digest(
        {"b": base["a"], "a": base["a"]}
    )


def test_flatten_and_back():
    tree = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([7.0])}
    assert trees.flatten(tree).tolist() == [0, 1, 2, 3, 4, 5, 7]
    back = trees.unflatten(trees.flatten(tree), tree)
    assert trees.digest(back) == trees.digest(tree)
