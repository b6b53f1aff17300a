"""Few bits a slope: the codes by hand, no bias, the bytes, refusals, and the server's replay."""

from __future__ import annotations

import math

import pytest
import torch

import forefed
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order, Update
from forefed.directions import Fresh
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, Trainer, replay
from forefed.local.replay import _as_vectors, _step_by_step, check_slopes
from forefed.optimisers import AdamW, DiffGrad, Optimiser, Sgd, Yogi
from forefed.wire import CODECS, FeedSign, OneByte, Projections, Scalars
from forefed.wire.message import HEAD_BYTES, pack, unpack
from forefed.wire.one_byte import magnitudes
from toy import toy_clients, toy_params, toy_task, trained

ORDER = Order(1, 3, 5, ("x",), {"x": torch.zeros(3)})
CONTEXT = ClientContext(order=ORDER)
CODED = ("one_byte", "feedsign")
SLOPES = tuple(kind for kind in CODECS.kinds() if issubclass(CODECS[kind], Projections))


def codes(*slopes: float) -> list[int]:
    """The bytes of slopes that are codes, or out of range."""
    sent = Update(5, 4, None, {"body": torch.tensor([slopes])}, {})
    return list(unpack(OneByte().encode(sent, CONTEXT), "one_byte")[1])


def test_bytes_by_hand() -> None:
    assert codes(1.0, -1.0) == [0x40, 0xC0]
    assert codes(float(magnitudes()[0x3A]), 0.0, -0.0) == [0x3A, 0, 0]
    assert float(magnitudes()[0x3A]) == pytest.approx(0.47237, abs=5e-6)
    assert codes(2631.0, -1e30, math.nan, math.inf, -math.inf) == [0x7F, 0xFF, 0x80, 0x80, 0x80]
    assert [float(magnitudes()[e]) for e in (0, 1, 127)] == pytest.approx(
        [0.0, 3.80e-4, 2631], rel=2e-3
    )
    assert trees.digest({"magnitudes": magnitudes()})[:16] == "538e98ef2a75bd6e"


@pytest.mark.parametrize("slope", [1.0, 0.37, 3e-4, 777.7, -0.37])
def test_the_mean_over_many_roundings_is_the_slope(slope: float) -> None:
    count = 400_000
    context = ClientContext(order=Order(1, 4, 5, ("x",), {}))
    rounded = OneByte().lossy({"body": torch.full((count,), slope)}, context)["body"].double()
    error = rounded.std() / count**0.5
    assert abs(float(rounded.mean()) - slope) <= 3 * float(error) + 1e-7
    if abs(slope) > 3.8e-4:
        assert float(rounded.std()) <= 0.0625 * abs(slope)
    assert len(set(rounded.tolist())) <= 2


def test_a_code_and_its_neighbour_are_an_eighth_of_e_apart() -> None:
    table = magnitudes().double()[1:]
    torch.testing.assert_close(table[1:] / table[:-1], torch.full((126,), math.exp(1 / 8)).double())
    middle = (table[1:] * table[:-1]).sqrt()  # the worst case, were it rounded to the nearer
    assert float((table[1:] / middle).max()) == pytest.approx(1.0645, abs=1e-4)
    assert float((table[:-1] / middle).min()) == pytest.approx(0.9394, abs=1e-4)


def test_another_seed_rounds_otherwise_and_the_same_one_alike() -> None:
    slopes = {"body": Key(3).normal((50,)), "head": Key(4).normal((50,))}
    there = OneByte().lossy(slopes, CONTEXT, 1)
    other = ClientContext(order=Order(2, 3, 5, ("x",), {}))
    assert trees.digest(there) == trees.digest(OneByte().lossy(slopes, CONTEXT, 1))
    digests = {
        trees.digest(OneByte().lossy(slopes, c, t)) for c in (CONTEXT, other) for t in (0, 1)
    }
    assert len(digests) == 4


@pytest.mark.parametrize("kind", CODED)
def test_bytes_of_a_message(kind: str) -> None:
    """At most 200 beside the codes, with all the metrics that training has."""
    metrics = {"loss": 0.693147, "steps": 25.0, "skipped": 0.0, "forwards": 51234.0, "clamped": 3.0}
    metrics["peak_bytes"] = 123456789.0
    slopes = {"body": Key(1).normal((25, 33)), "head": Key(2).normal((25, 64))}
    sent = Update(123456, 4321, None, slopes, metrics)
    order = Order(1, 1234, 123456, ("x",), {})
    data = CODECS[kind]().encode(sent, ClientContext(order=order))
    of_codes = 25 * 97 if kind == "one_byte" else -(-25 * 33 // 8) + 25 * 64 // 8
    assert HEAD_BYTES < len(data) - of_codes <= 200


def test_a_bit_is_the_sign_and_what_has_none_rests() -> None:
    sent = {"body": torch.tensor([[2.0, -1e-9, math.nan, 5.0]]), "head": torch.tensor([[-3.0]])}
    data = FeedSign().encode(Update(5, 4, None, sent, {}), CONTEXT)
    meta, body = unpack(data, "feedsign")
    assert list(body) == [0b1001, 0] and meta["x"] == {"body": [2], "head": []}
    back = FeedSign().decode(data, ORDER).slopes
    assert back is not None and back["head"].tolist() == [[-1.0]]
    assert str(back["body"].tolist()) == "[[1.0, -1.0, nan, 1.0]]"
    zeros = FeedSign().lossy({"body": torch.zeros(400)}, CONTEXT)["body"]
    assert set(zeros.tolist()) == {1.0, -1.0} and abs(float(zeros.mean())) < 0.2


@pytest.mark.parametrize(
    ("meta", "body", "reason"),
    [
        ({}, b"", r"\[steps, K\] per group"),
        ({"s": {"body": [1]}}, b"", r"\[steps, K\] per group"),
        ({"s": {"body": [1, -1]}}, b"", r"\[steps, K\] per group"),
        ({"s": {"body": [1, True]}}, b"1", r"\[steps, K\] per group"),
        ({"s": {"body": [2, 3]}}, b"12345", "5 bytes of slopes, not 6"),
        ({"s": {"body": [1, 1], "head": [2, 1]}}, b"123", "unlike numbers of steps"),
        ({"s": {"body": [10**6 + 1, 0]}}, b"", "more local steps"),
        ({"s": {"body": [10**6, 10**6]}}, b"", "more local steps or slopes"),
        ({"s": {"body": [1, 1]}, "x": {"body": [1]}}, b"1", "none of this message"),
        ({"s": {"body": [1, 1]}, "x": {"head": [0]}}, b"1", "none of this message"),
        ({"s": {"body": [1, 1]}, "x": [0]}, b"1", "no table"),
    ],
)
def test_other_forms_are_refused(meta: dict[str, object], body: bytes, reason: str) -> None:
    data = pack("one_byte", {"r": 3, "c": 5, "n": 4, "m": {}, **meta}, body)
    with pytest.raises(ProtocolError, match=reason):
        OneByte().decode(data, ORDER)


@pytest.mark.parametrize("kind", SLOPES)
def test_the_server_replays_the_bits_that_the_client_has(kind: str) -> None:
    order = Order(4, 2, 1, tuple(toy_params()), toy_params())
    settings = LocalTraining(batch_size=4, epochs=2, optimiser=Sgd(lr=0.05, momentum=0.9))
    codec = CODECS.parse(kind)
    train = Trainer(settings, Forward(), codec, toy_task(), directions=Fresh(k=3, head_k=4))
    sent, change = trained(train, order, toy_clients()[1])
    came = codec.decode(codec.encode(sent, ClientContext(order=order)), order)
    rebuilt = replay(train, order, came).grad
    assert rebuilt is not None and trees.digest(rebuilt) == trees.digest(change)
    assert trees.norm(change) > 0


@pytest.mark.parametrize(
    "optimiser",
    [
        Sgd(lr=0.05, momentum=0.9, head_lr=0.2),
        AdamW(lr=0.01, weight_decay=0.1, head_lr=0.03),
        Yogi(),
        DiffGrad(),
    ],
    ids=lambda o: o.kind,
)
def test_a_replay_by_vectors_has_the_bits_of_one_by_parameters(optimiser: Optimiser) -> None:
    order = Order(4, 2, 1, tuple(toy_params()), toy_params())
    settings = LocalTraining(batch_size=4, epochs=2, optimiser=optimiser)
    train = Trainer(settings, Forward(), Scalars(), toy_task(), directions=Fresh(k=3, head_k=4))
    sent, change = trained(train, order, toy_clients()[1])
    groups = check_slopes(train, order, sent)
    ctx = ClientContext(order=order, head=train.task.head)
    assert sent.slopes is not None and {*groups} == {"body", "head"}
    for params in (order.params, toy_params(torch.float32)):
        slow = _step_by_step(train, ctx, groups, params, sent.slopes)
        fast = _as_vectors(train, ctx, groups, params, sent.slopes)
        assert (fast is None) == (optimiser.kind == "diffgrad")  # its sigmoid may round by place
        for one, other in zip(slow, fast or slow, strict=True):
            assert trees.digest(one) == trees.digest(other)
    rebuilt = replay(train, order, sent).grad
    assert rebuilt is not None and trees.digest(rebuilt) == trees.digest(change)


def loss(params, batch):  # type: ignore[no-untyped-def]
    return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()


def four_clients() -> list[dict[str, torch.Tensor]]:
    truth = Key(9).normal((5,))
    xs = [Key(i).normal((12, 5)) for i in range(4)]
    return [{"x": x, "y": x @ truth} for x in xs]


def final(strategy: str, **more: object) -> float:
    client = {"batch_size": "all", "optimiser": {"kind": "sgd", "lr": 0.08}}
    settings = {"client": client, "engine": "forward", "server": "sgd"}
    settings["directions"] = {"k": 4}
    settings |= more
    result = forefed.simulate(
        loss, {"w": torch.zeros(5)}, four_clients(), strategy=strategy, rounds=60, **settings
    )
    return result.losses[-1]


def test_a_group_of_body_and_head_is_replayed_by_parameters() -> None:
    """A vector has one rate, and they have two."""
    order = Order(4, 2, 1, tuple(toy_params()), toy_params())
    settings = LocalTraining(batch_size=4, epochs=2, optimiser=Sgd(lr=0.05, head_lr=0.2))
    engine = Forward(head="perturbed")
    train = Trainer(settings, engine, Scalars(), toy_task(), directions=Fresh(k=3))
    sent, change = trained(train, order, toy_clients()[1])
    assert sent.slopes is not None and {*sent.slopes} == {"body"}
    rebuilt = replay(train, order, sent).grad
    assert rebuilt is not None and trees.digest(rebuilt) == trees.digest(change)


def test_one_byte_learns_what_float32_learns() -> None:
    exact, rounded = (final("fedfgd", codec=kind) for kind in ("scalars", "one_byte"))
    assert rounded < 1e-3 and exact < 1e-3


def test_saturated_slopes_are_counted_by_the_server() -> None:
    def steep(params, batch):  # type: ignore[no-untyped-def]
        return 1e6 * loss(params, batch)

    result = forefed.simulate(
        steep,
        {"w": torch.zeros(5)},
        four_clients(),
        strategy="fedfgd",
        rounds=1,
        codec="one_byte",
        engine="forward",
        directions={"k": 1},
        client={"batch_size": "all", "optimiser": {"kind": "sgd", "lr": 1e-9}},
    )
    assert [u.metrics["saturated"] for u in result.reports[0].updates] == [1.0] * 4


def test_a_vote_is_what_most_clients_say() -> None:
    """Three of five clients have the slope 1 along every direction, two liars send -1e6."""
    scale = torch.tensor([1.0, 1.0, 1.0, -1e6, -1e6])
    clients = [{"s": s.reshape(1)} for s in scale]

    def linear(params, batch):  # type: ignore[no-untyped-def]
        return params["w"][0] * batch["s"].mean()

    def step(strategy: str) -> float:
        client = {"max_steps": 1, "optimiser": {"kind": "sgd", "lr": 0.5}}
        found = forefed.simulate(
            linear, {"w": torch.zeros(1)}, clients, strategy=strategy, rounds=1, client=client
        )
        return float(found.params["w"])

    # with one parameter a direction is 1 or -1, and sign(v) v = 1 along all of them
    assert step("feedsign") == -0.5
    assert step("decomfl") > 1e5
