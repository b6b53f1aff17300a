"""Laws of the gradient engines on the toy world, in float64 (laws 1 to 3 and 5)."""

import math

import pytest
import torch

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Order
from forefed.directions import Basis, Fresh
from forefed.directions.sets import BasisDirections, RandomDirections
from forefed.gradients import ENGINES
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.exact_head import ExactHead
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.gradients.memory import measure_peak
from forefed.gradients.structured import Structured
from toy import HEAD, ToyLoss, toy_clients, toy_params

LOSS = ToyLoss()
PARAMS = toy_params()
BODY = {n: x for n, x in PARAMS.items() if n not in HEAD}
BATCH = toy_clients()[1].examples.batch(range(7, 20))
GRAD = Backprop()(LOSS, PARAMS, BATCH).grad
ORDER = Order(1, 1, 0, tuple(PARAMS), PARAMS)


def close(a, b, rtol):
    assert a.keys() == b.keys()
    assert trees.norm(trees.subtract(a, b)) <= rtol * trees.norm(b)


def test_backprop_equals_numerical_differentiation():
    numerical = FiniteDifference(head="perturbed", eps=1e-5)
    estimate = numerical(LOSS, PARAMS, BATCH, BasisDirections(), HEAD)
    close(BasisDirections().combine(PARAMS, estimate.slopes_K), GRAD, 1e-8)


@pytest.mark.parametrize("law", ["rademacher", "gauss16"])
@pytest.mark.parametrize("k", [1, 3, 11])
def test_slope_is_gradient_times_direction(law, k):
    engine = Forward(tangents=4)
    directions = Fresh(k=k, distribution=law).of(ORDER)
    estimate = engine(LOSS, PARAMS, BATCH, directions, HEAD)
    for i in range(k):
        tangent = {n: x[0] for n, x in directions.tangents(BODY, range(i, i + 1)).items()}
        expected = trees.dot(tangent, trees.pick(GRAD, BODY))
        assert float(estimate.slopes_K[i]) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(
        estimate.slopes_K, directions.project(trees.pick(GRAD, BODY)), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("engine", [Forward(), FiniteDifference()])
def test_the_head_gets_its_exact_gradient_and_is_never_perturbed(engine):
    estimate = engine(LOSS, PARAMS, BATCH, Fresh(k=5).of(ORDER), HEAD)
    close(estimate.grad, trees.pick(GRAD, HEAD), 1e-10)


def test_the_head_is_perturbed_on_request():
    engine = Forward(head="perturbed")
    directions = Fresh(k=2).of(ORDER)
    estimate = engine(LOSS, PARAMS, BATCH, directions, HEAD)
    assert estimate.grad == {}
    torch.testing.assert_close(estimate.slopes_K, directions.project(GRAD), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tangents", [1, 7, 1000])
def test_basis_mode_is_the_exact_gradient_for_any_chunk(tangents):
    engine = Forward(tangents=tangents)
    estimate = engine(LOSS, PARAMS, BATCH, BasisDirections(), HEAD)
    close(BasisDirections().combine(BODY, estimate.slopes_K), trees.pick(GRAD, BODY), 1e-12)


@pytest.mark.parametrize("rows", [1, 4, 13, 50])
@pytest.mark.parametrize(
    "engine",
    [
        Backprop(),
        Checkpointed(),
        Structured(),
        Forward(),
        FiniteDifference(),
        ExactHead(),
    ],
    ids=lambda e: e.kind,
)
def test_micro_batches_change_nothing(engine, rows):
    params = trees.pick(PARAMS, sorted(HEAD)) if engine.kind == "exact_head" else PARAMS
    loss = LOSS if engine.kind != "exact_head" else HeadLoss()
    directions = Fresh(k=3).of(ORDER)
    whole = engine(loss, params, BATCH, directions, HEAD)
    parts = engine.model_copy(update={"micro_batch": rows})(loss, params, BATCH, directions, HEAD)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    close(parts.grad, whole.grad, 1e-12)
    if whole.slopes_K is not None:
        rtol = 1e-12 if engine.kind == "forward" else 1e-9  # rounding / eps
        torch.testing.assert_close(parts.slopes_K, whole.slopes_K, rtol=rtol, atol=1e-11)


class HeadLoss:
    """The toy loss as a function of the head alone."""

    def __call__(self, params, batch):
        return LOSS({**PARAMS, **params}, batch)

    def weight(self, batch):
        return batch.size


def test_finite_difference_tends_to_the_slope():
    directions = RandomDirections(1, 1, 0, k=4)
    exact = directions.project(trees.pick(GRAD, BODY))

    def error(eps):
        engine = FiniteDifference(eps=eps)
        found = engine(LOSS, PARAMS, BATCH, directions, HEAD).slopes_K
        return float((found - exact).norm())

    assert error(1e-5) < 1e-8
    assert 60 < error(1e-2) / error(1e-3) < 140  # order eps^2


@pytest.mark.parametrize(("law", "excess"), [("rademacher", -1), ("gauss16", 1)])
@pytest.mark.parametrize("k", [1, 8])
def test_estimates_are_unbiased_with_the_stated_error(law, excess, k):
    d, draws = 64, 1500
    grad = {"w": Key(3).normal((d,)).double()}
    total, squared = torch.zeros(d, dtype=torch.float64), 0.0
    for step in range(draws):
        directions = RandomDirections(1, 1, 0, k=k, law=law, step=step)
        estimate = directions.combine(grad, directions.project(grad))["w"]
        total += estimate
        squared += float(((estimate - grad["w"]) ** 2).sum())
    size = float((grad["w"] ** 2).sum())
    error = (d + excess) / k
    assert squared / draws / size == pytest.approx(error, rel=0.12)
    bias = float(((total / draws - grad["w"]) ** 2).sum()) / size
    assert bias < 1.5 * error / draws  # 1.0 is expected of an unbiased mean


def test_other_clients_steps_and_directions_are_distinct():
    like = {"w": torch.zeros(4096, dtype=torch.float64)}
    sets = [
        RandomDirections(1, 1, 0, k=2),
        RandomDirections(1, 1, 1, k=2),
        RandomDirections(1, 2, 0, k=2),
        RandomDirections(1, 1, 0, k=2).at(1),
    ]
    vectors = [x for s in sets for x in s.tangents(like, range(2))["w"]]
    for i, a in enumerate(vectors):
        for b in vectors[:i]:
            assert abs(float(a @ b)) / 4096 < 5 / math.sqrt(4096)


def test_non_finite_slopes_are_left_out():
    directions = RandomDirections(1, 1, 0, k=3)
    slopes = directions.project(trees.pick(GRAD, BODY))
    slopes[1] = math.nan
    found = directions.combine(BODY, slopes)
    kept = [directions.tangents(BODY, range(k, k + 1)) for k in (0, 2)]
    expected = {n: (slopes[0] * kept[0][n][0] + slopes[2] * kept[1][n][0]) / 2 for n in BODY}
    close(found, expected, 1e-12)
    assert directions.combine(BODY, torch.full((3,), math.inf)) is None
    assert BasisDirections().combine(BODY, torch.full((75,), math.nan)) is None


def test_results_do_not_depend_on_an_outer_no_grad():
    engine = Forward()
    directions = Fresh(k=2).of(ORDER)
    with torch.no_grad():
        inside = engine(LOSS, PARAMS, BATCH, directions, HEAD)
        exact = Backprop()(LOSS, PARAMS, BATCH)
    outside = engine(LOSS, PARAMS, BATCH, directions, HEAD)
    assert torch.equal(inside.slopes_K, outside.slopes_K)
    close(inside.grad, outside.grad, 0)
    close(exact.grad, GRAD, 0)


def test_forward_equivalents_by_hand():
    n = BATCH.size
    counts = {
        (Backprop(), 1): 2,
        (Checkpointed(), 1): 3,
        (Structured(), 1): 3,
        (Forward(), 1): 2,  # one primal, one tangent
        (Forward(tangents=2), 4): 6,  # two primals, four tangents
        (FiniteDifference(), 3): 7,  # six passes, one more for the head
    }
    for (engine, k), passes in counts.items():
        estimate = engine(LOSS, PARAMS, BATCH, Fresh(k=k).of(ORDER), HEAD)
        assert estimate.forwards == passes * n, engine


def test_peak_memory_is_counted_exactly():
    def work():
        a = torch.zeros(1000, 1000)  # 4 MB
        b = a + 1  # 8 MB live
        del a
        c = b * 2  # 8 MB live again
        return c

    _, peak = measure_peak(work)
    assert 8_000_000 <= peak < 8_000_100  # beside it: a few scalars


@pytest.mark.parametrize(
    ("engine", "kind", "rows", "walked"),
    [
        (Backprop(micro_batch=3), None, 6, None),
        (Forward(micro_batch=3, tangents=2), Basis(), 6, 2),
        (Forward(micro_batch=3, tangents=2, sub_batches=3), Fresh(k=5), 6, 6),
        (FiniteDifference(micro_batch=None), Fresh(k=4), 13, 1),
    ],
)
def test_memory_is_measured_on_a_part_of_a_long_call(engine, kind, rows, walked):
    parts = getattr(engine, "sub_batches", 1)
    directions = kind.of(ORDER, parts=parts) if kind else None
    few, along = engine.sample(LOSS, BATCH, directions, BODY)
    assert few.size == rows
    assert (along.count(BODY) if along else None) == walked
    _, part = measure_peak(lambda: engine(LOSS, PARAMS, few, along, HEAD))
    _, whole = measure_peak(lambda: engine(LOSS, PARAMS, BATCH, directions, HEAD))
    assert part == pytest.approx(whole, abs=1500)  # slopes and scalars of the toy world


def test_every_engine_explains_itself():
    for engine in ENGINES:
        assert len(engine.summary()) > 20


@pytest.mark.parametrize("parts", [1, 3, 13, 20])
@pytest.mark.parametrize("rows", ["auto", 2])
def test_every_part_of_the_batch_has_directions_of_its_own(parts, rows):
    """The estimate is the share-weighted mean of the parts' own estimates; here by hand."""
    engine = Forward(sub_batches=parts, micro_batch=rows)
    directions = Fresh(k=2).of(ORDER, parts=parts)
    estimate = engine(LOSS, PARAMS, BATCH, directions, HEAD)
    found = directions.combine(BODY, estimate.slopes_K)
    expected = {n: torch.zeros_like(x) for n, x in BODY.items()}
    for i in range(parts):
        part = BATCH.rows(i * BATCH.size // parts, (i + 1) * BATCH.size // parts)
        if part.size == 0:
            continue
        grad = trees.pick(Backprop()(LOSS, PARAMS, part).grad, BODY)
        along = directions.tangents(BODY, range(2 * i, 2 * i + 2))
        for k in range(2):
            v = {n: x[k] for n, x in along.items()}
            weight = part.size / BATCH.size / 2 * trees.dot(v, grad)
            expected = {n: x + weight * v[n] for n, x in expected.items()}
    close(found, expected, 1e-10)
    close(estimate.grad, trees.pick(GRAD, HEAD), 1e-10)
    assert estimate.loss == pytest.approx(Backprop()(LOSS, PARAMS, BATCH).loss, rel=1e-12)
    assert estimate.forwards == 3 * BATCH.size  # one primal, two tangents: as with one part
