"""The sparse codec and what is kept of what it leaves behind: DGC's laws, by hand and in runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from federation import Interrupted, StopAfter, World
from forefed.config.compat import check
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Key
from forefed.core.states import State
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.modifiers import Dgc, ErrorFeedback
from forefed.modifiers.error_feedback import Feedback
from forefed.run import configure, run
from forefed.wire import Codec, Quantised, Sparse
from forefed.wire.message import HEAD_BYTES, pack, unpack

D, STEPS = 200, 50
RATIO = 0.05


def context(round: int, codec: Codec, params: Params | None = None) -> ClientContext:
    params = {"w": torch.zeros(D)} if params is None else params
    ctx = ClientContext(order=Order(1, round, 5, tuple(params), params))
    return replace(ctx, arriving=lambda change: codec.lossy(change, ctx))


def gradients(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [Key(t).normal((D,)).to(dtype) for t in range(STEPS)]


def through(
    modifier: Feedback, codec: Codec, changes: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], State]:
    """What arrives of one client's changes, what it meant to send, and what it keeps."""
    state: State = {}
    arrived, meant = [], []
    for i, g in enumerate(changes):
        ctx = context(i + 1, codec, {"w": torch.zeros_like(g)})
        update, state = modifier.on_send(Update(5, 4, {"w": g}), state, ctx)
        back = codec.decode(codec.encode(update, ctx), ctx.order)
        assert update.grad is not None and back.grad is not None
        arrived.append(back.grad["w"])
        meant.append(update.grad["w"])
    return arrived, meant, state


def dense_momentum(changes: list[Tensor], m: float) -> list[Tensor]:
    u, found = changes[0] * 0, []
    for g in changes:
        u = m * u + g
        found.append(u)
    return found


def total(tensors: list[Tensor]) -> Tensor:
    return torch.stack([x.double() for x in tensors]).sum(0)


@pytest.mark.parametrize("codec", [Sparse(ratio=RATIO), Quantised(bits=4)], ids=["sparse", "4bit"])
@pytest.mark.parametrize("modifier", [ErrorFeedback(), Dgc(momentum=0.0)], ids=["ef", "dgc"])
def test_what_arrived_and_what_is_kept_are_all_that_there_was(
    modifier: Feedback, codec: Codec
) -> None:
    g = gradients()
    arrived, _, state = through(modifier, codec, g)
    torch.testing.assert_close(total(arrived) + state["residual/w"], total(g), rtol=0, atol=1e-12)
    assert float((total(arrived) - total(g)).norm()) > 0.1


def test_momentum_is_not_lost_where_it_is_not_masked() -> None:
    g = gradients()
    codec = Sparse(ratio=RATIO)
    arrived, _, state = through(Dgc(momentum=0.9, masking=False), codec, g)
    dense = total(dense_momentum(g, 0.9))
    torch.testing.assert_close(total(arrived) + state["residual/w"], dense, rtol=0, atol=1e-11)
    masked, _, state = through(Dgc(momentum=0.9), codec, g)
    assert float((total(masked) + state["residual/w"] - dense).norm()) > 1.0


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_every_element_sent_it_is_momentum_or_nothing(nesterov: bool) -> None:
    g, whole = gradients(torch.float32), Sparse(ratio=1.0, values="float32")
    arrived, _, _ = through(Dgc(momentum=0.9, masking=False), whole, g)
    assert all(map(torch.equal, arrived, dense_momentum(g, 0.9)))
    plain, _, _ = through(Dgc(momentum=0.0, nesterov=nesterov), whole, g)
    assert all(map(torch.equal, plain, g))
    masked, _, state = through(Dgc(momentum=0.9), whole, g)
    assert all(map(torch.equal, masked, g))  # momentum that was sent starts anew
    assert not state["momentum/w"].any() and not state["residual/w"].any()


def test_one_step_by_hand() -> None:
    g = torch.tensor([3.0, -1.0, 0.5, 4.0])
    codec = Sparse(ratio=0.5)
    arrived, meant, state = through(Dgc(momentum=0.5, clip=100.0), codec, [g, g])
    assert arrived[0].tolist() == [3.0, 0.0, 0.0, 4.0]
    # u = 0.5 u + g where u was kept: 1, 2: -1.5, 0.75; v: -2.5, 1.25
    assert meant[1].tolist() == [3.0, -2.5, 1.25, 4.0]
    assert arrived[1].tolist() == [3.0, 0.0, 0.0, 4.0]
    assert state["momentum/w"].tolist() == [0.0, -1.5, 0.75, 0.0]
    assert state["residual/w"].tolist() == [0.0, -2.5, 1.25, 0.0]
    _, clipped, _ = through(Dgc(momentum=0.5, clip=1.0), codec, [g])
    assert float(clipped[0].norm()) == pytest.approx(1.0)
    _, ahead, _ = through(Dgc(momentum=0.5, nesterov=True), codec, [g])
    assert ahead[0].tolist() == (1.5 * g).tolist()


def test_what_was_kept_shrinks_while_a_client_is_away() -> None:
    codec, g = Sparse(ratio=0.5), torch.tensor([1.0, 8.0])
    modifier = ErrorFeedback(decay=0.5)
    both = {"a": torch.zeros(2), "b": torch.zeros(2)}
    _, state = modifier.on_send(Update(5, 4, {"a": g, "b": g}), {}, context(3, codec, both))
    assert state["residual/a"].tolist() == [1.0, 0.0] and int(state["round"]) == 3
    # two rounds without it; in the third one it is asked for a only
    sent, state = modifier.on_send(
        Update(5, 4, {"a": g * 0}), state, context(6, codec, {"a": torch.zeros(2)})
    )
    assert sent.grad is not None and sent.grad["a"].tolist() == [0.25, 0.0]
    assert state["residual/b"].tolist() == [0.125, 0.0]
    nothing, same = modifier.on_send(Update(5, 0, {"a": g * 0}), state, context(7, codec, both))
    assert same is state and nothing.grad is not None and not nothing.grad["a"].any()
    broken = Update(5, 4, {"a": g * math.nan})
    assert modifier.on_send(broken, state, context(7, codec, both)) == (broken, state)


def test_a_warm_up_sends_a_quarter_of_what_the_stage_before_sent() -> None:
    codec = Sparse(ratio=0.001, warm_up=2)
    counts = [codec.count(10_000, r) for r in range(1, 13)]
    assert counts == [2500, 2500, 625, 625, 157, 157, 40, 40, 10, 10, 10, 10]
    assert Sparse(ratio=0.001).count(10_000, 1) == 10
    assert Sparse(ratio=0.001).count(10_001, 1) == 11
    assert Sparse(ratio=0.5, warm_up=1).count(100, 1) == 50


def test_ties_go_to_the_lowest_place_and_bytes_are_six_an_element() -> None:
    params = {"b": torch.zeros(3), "a": torch.zeros(2, 2)}
    ctx = context(1, Sparse(ratio=0.5), params)
    change = {"b": torch.tensor([1.0, -2.0, 1.0]), "a": torch.tensor([[1.0, 1.0], [0.5, -1.0]])}
    data = Sparse(ratio=0.5).encode(Update(5, 4, change), ctx)
    _, body = unpack(data, "sparse")
    assert len(body) == 6 * 4 and HEAD_BYTES < len(data) - len(body) < 100
    assert list(body[:16:4]) == [0, 1, 3, 5]  # a before b; the fourth 1 of three is left out
    back = Sparse(ratio=0.5).decode(data, ctx.order).grad
    assert back is not None and list(back) == ["b", "a"]
    assert back["a"].tolist() == [[1.0, 1.0], [0.0, -1.0]] and back["b"].tolist() == [0, -2.0, 0]
    wide = Sparse(ratio=0.5, values="float32").encode(Update(5, 4, change), ctx)
    assert len(wide) - len(data) == 2 * 4 - 1 + len(str(0)) - len(str(1)) + 1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e38])
def test_no_change_is_too_small_or_too_large_for_sixteen_bits(scale: float) -> None:
    change = {"w": scale * torch.linspace(-1, 1, D)}
    arrived = Sparse(ratio=1.0).lossy(change, context(1, Sparse()))["w"]
    large = change["w"].abs() > 1e-3 * scale
    assert float((arrived / change["w"] - 1)[large].abs().max()) <= 2**-11


def body(places: list[int], values: list[float], exponent: Any = 0, **meta: Any) -> bytes:
    raw = torch.tensor(places, dtype=torch.int32).numpy().tobytes()
    raw += torch.tensor(values, dtype=torch.float16).numpy().tobytes()
    return pack("sparse", {"r": 1, "c": 5, "n": 4, "m": {}, "e": exponent, **meta}, raw)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (body([0], [1.0]), "6 bytes of elements, not 12"),
        (body([0, 200], [1.0, 1.0]), "beyond the parameters"),
        (body([-1, 2], [1.0, 1.0]), "beyond the parameters"),
        (body([3, 3], [1.0, 1.0]), "not in their order"),
        (body([0, 1], [1.0, math.inf]), "not finite"),
        (body([0, 1], [1.0, 1.0], 10**9), "no exponent"),
        (body([0, 1], [1.0, 1.0], True), "no exponent"),
        (body([0, 1], [1.0, 1.0], 200), "not finite"),
        (body([0, 1], [1.0, 1.0], r=2), "came to the order"),
    ],
)
def test_other_forms_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        Sparse().decode(data, context(1, Sparse()).order)


def test_what_is_not_finite_is_sent_and_refused() -> None:
    ctx = context(1, Sparse())
    for bad in (math.nan, math.inf):
        change = torch.ones(D)
        change[7] = bad
        with pytest.raises(ProtocolError, match="not finite"):
            Sparse().decode(Sparse().encode(Update(5, 4, {"w": change}), ctx), ctx.order)


FEW = ["strategy=fedavg", "codec=sparse", "codec.ratio=0.02"]


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (["strategy=fedavg", 'modifiers=["dgc"]'], "'dgc' keeps what is lost on the way"),
        ([*FEW, 'modifiers=["error_feedback", "clip"]'], "put 'error_feedback' after it"),
        ([*FEW, "aggregator=median"], "aggregator.kind = 'median' asks element by element"),
        (["strategy=spry", "codec=scalars", 'modifiers=["dgc"]'], "'dgc' works on delta"),
    ],
)
def test_what_does_not_go_together(sets: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check(configure(sets=sets))
    check(configure(sets=[*FEW, 'modifiers=["clip", "error_feedback"]']))


def test_feedback_finds_what_a_few_elements_alone_do_not() -> None:
    """A quadratic of 50 parameters, two of which are sent a round."""
    target = Key(2).normal((50,))

    def loss(params: Any, batch: Any) -> Tensor:
        return ((params["w"] - batch["t"]) ** 2).sum(1).mean()

    def left(*modifiers: Any, ratio: float = 0.04, lr: float = 1.0) -> float:
        client = {"batch_size": "all", "optimiser": {"kind": "sgd", "lr": 0.02}}
        return forefed.simulate(
            loss,
            {"w": torch.zeros(50)},
            [{"t": target + Key(i).fold("own").normal((1, 50))} for i in range(3)],
            rounds=100,
            codec={"kind": "sparse", "ratio": ratio},
            modifiers=modifiers,
            client=client,
            server={"kind": "sgd", "lr": lr},
        ).losses[-1]

    dense = left(ratio=1.0)
    assert left() > 1.5 * dense
    assert left("error_feedback") == pytest.approx(dense, rel=0.02)
    assert left("dgc", lr=0.2) == pytest.approx(dense, rel=0.05)


def test_what_clients_keep_is_resumed_bit_for_bit(world: World, tmp_path: Path) -> None:
    sets = [*FEW, "codec.warm_up=1", 'modifiers=["dgc"]', "rounds=4", "cohort=4"]
    whole = world.run(tmp_path, *sets, "name=whole")
    config = world.config(tmp_path, *sets, "name=stopped")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(2))
    assert run(config, resume=True).summary["digest"] == whole.summary["digest"]
    other = world.run(tmp_path, *FEW, "codec.warm_up=1", "rounds=4", "cohort=4", "name=without")
    assert other.summary["digest"] != whole.summary["digest"]
