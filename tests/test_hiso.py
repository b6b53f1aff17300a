"""HiSo: directions shaped by a curvature that everybody rebuilds from the slopes."""

import pytest
import torch

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order, ServerContext
from forefed.directions import Fresh
from forefed.directions.sets import RandomDirections
from forefed.federation.star import RunState
from forefed.gradients.backprop import Backprop
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, Trainer, replay
from forefed.local.groups import groups_of, rebuild
from forefed.modifiers import Curvature
from forefed.optimisers import Sgd
from forefed.wire import Scalars
from shared import Deaf, params, star
from toy import HEAD, ToyLoss, toy_clients, toy_params, toy_task, trained

DOUBLE = torch.float64


def curvature(like, seed=3):
    return {
        f"curvature/{n}": 0.1 + Key(seed).fold(n).normal(x.shape).to(x).square()
        for n, x in like.items()
    }


def directions(d, k, number, h):
    return RandomDirections(1, number, 0, k, "gauss16", scale={"w": h**-0.5})


@pytest.mark.parametrize(("k", "draws", "error"), [(1, 4000, 0.2), (20, 150, 0.15), (200, 15, 0.1)])
def test_the_square_of_a_shaped_estimate(k, draws, error):
    """baselines 12.2: E[(s z)_i^2] = (|a|^2 + (K + 1) a_i^2) / (K H_i), a = g / sqrt(H)."""
    h = torch.tensor([1.0, 4.0, 0.25], dtype=DOUBLE)
    g = torch.tensor([1.0, -3.0, 1.5], dtype=DOUBLE)
    a = g / h.sqrt()
    expected = (a.square().sum() + (k + 1) * a.square()) / (k * h)
    found = torch.zeros(3, dtype=DOUBLE)
    for number in range(draws):
        shaped = directions(3, k, number, h)
        found += shaped.combine({"w": g}, shaped.project({"w": g}))["w"].square() / draws
    # the relative spread of one square is about 4 at K = 1 and 2 / sqrt(K) at large K
    assert (found / expected - 1).abs().max() < error


def test_the_estimate_is_the_preconditioned_gradient_on_average():
    h = torch.tensor([1.0, 4.0, 0.25, 9.0], dtype=DOUBLE)
    g = torch.tensor([1.0, -3.0, 1.5, 0.5], dtype=DOUBLE)
    shaped = directions(4, 2000, 1, h)
    mean = shaped.combine({"w": g}, shaped.project({"w": g}))["w"]
    torch.testing.assert_close(mean, g / h, rtol=0.15, atol=0.15)


def test_exact_curvature_makes_every_condition_the_same():
    """baselines 12.1: the loss falls by (1 - 1/(d + 2))^400 = 4.3e-4 at condition 10^4."""
    d, steps = 50, 400
    h = torch.logspace(0, 4, d, dtype=DOUBLE)

    def ratio(scale, rate):
        w = 1 / h.sqrt()
        first = float(h @ w.square())
        for number in range(steps):
            along = RandomDirections(1, number, 0, 1, "gauss16", scale={"w": scale})
            estimate = along.combine({"w": w}, along.project({"w": h * w}))
            w = w - rate * estimate["w"]
        return float(h @ w.square()) / first

    shaped = ratio(h**-0.5, 1 / (d + 2))
    assert 4.3e-4 / 4 < shaped < 4.3e-4 * 4
    assert ratio(torch.ones(d, dtype=DOUBLE), 1 / (1e4 * 3 + float(h.sum()))) > 0.3


def test_curvature_by_hand_with_its_floor():
    curvature = Curvature(rate=0.25, floor=0.5)

    def after(state, **last):
        given = {n: torch.tensor(x) for n, x in last.items()}
        ctx = ServerContext(round=1, key=Key(1), last_gradient=given)
        return curvature.on_aggregate({}, state, ctx)[1]

    first = after({}, w=[2.0, 0.0])
    assert first["w"].tolist() == [1.75, 0.75]
    second = after(first, w=[0.0, 0.0], v=[1.0])
    assert second["w"].tolist() == [1.3125, 0.5625]
    third = after(second, w=[4.0, 0.0])
    assert third["w"].tolist() == [4.984375, 0.5] and third["v"] == 1
    assert after(third) == third and curvature.broadcast(third) == third


@pytest.mark.parametrize(
    "engine",
    [Forward(), FiniteDifference(head="perturbed"), Backprop()],
    ids=repr,
)
@pytest.mark.parametrize("law", ["rademacher", "gauss16"])
def test_server_and_client_shape_alike(engine, law):
    codec = Scalars()
    directions = Fresh(k=2, distribution=law, head_k=4, head_distribution=law)
    settings = LocalTraining(epochs=2, batch_size=4, optimiser=Sgd(lr=0.1, momentum=0.5))
    train = Trainer(settings, engine, codec, toy_task(torch.float32), directions=directions)
    like = toy_params(torch.float32)
    for client, data in enumerate(toy_clients()):
        asked = Order(7, 2, client, tuple(like), like, curvature(like))
        update, own = trained(train, asked, data)
        received = replay(
            train, asked, codec.decode(codec.encode(update, ClientContext(order=asked)), asked)
        )
        assert trees.digest(received.grad) == trees.digest(own)


def test_slopes_are_along_the_shaped_directions():
    like, loss = params(0, DOUBLE), Deaf(ToyLoss())
    asked = Order(7, 2, 1, tuple(like), like, curvature(like))
    engine = Forward(head="perturbed")
    batch = toy_clients()[0].examples.batch(range(6))
    along = Fresh(k=2).of(asked)
    exact = Backprop()(loss, like, batch).grad
    expected = along.project(exact)
    assert torch.allclose(engine(loss, like, batch, along).slopes_K, expected, rtol=1e-9)
    plain = Fresh(k=2).of(Order(7, 2, 1, tuple(like), like))
    u, z = (x.tangents(like, range(2)) for x in (plain, along))
    for name in like:
        h = asked.broadcast[f"curvature/{name}"]
        torch.testing.assert_close(z[name] * h.sqrt(), u[name], rtol=1e-12, atol=1e-12)


def test_the_curvature_is_made_of_the_last_local_step():
    """By hand from the slopes that were sent: H = (1 - nu) + nu (mean_k s_k z_k)^2."""
    engine = Forward()
    directions = Fresh(k=3, head_k=4, shared=True)
    loop = star(engine, directions=directions, cohort=1, modifiers=(Curvature(rate=0.25),))
    state = RunState(0, params())
    while True:
        (asked,) = loop.plan(state).values()
        state, report = loop.round(state)
        (update,) = report.updates
        if len(update.slopes["body"]) > 1:
            break
    groups = groups_of(engine, Scalars(), asked, HEAD, directions)
    number = len(update.slopes["body"]) - 1
    slopes = {g: x[number] for g, x in update.slopes.items()}
    estimate = rebuild(slopes, groups, asked.params, number)
    for name, x in estimate.items():
        former = asked.broadcast.get(f"curvature/{name}", torch.ones_like(x))
        expected = (0.75 * former + 0.25 * (x * x)).clamp(min=1e-8)
        torch.testing.assert_close(
            state.of("modifier.curvature")[name], expected, rtol=1e-6, atol=0
        )
