"""The quantised codec: errors within a level, no bias, bytes, and refusals."""

import pytest
import torch

from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order, Update
from forefed.wire import CODECS, Dense
from forefed.wire.message import pack, pack_tensors, unpack, unpack_tensors

SHAPES = {"a": (3, 5), "b": (), "c": (7,)}
PARAMS = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
ORDER = Order(1, 3, 5, tuple(SHAPES), PARAMS)
META = {"r": 3, "c": 5, "n": 4, "m": {}}


def update(key: int = 1, client: int = 5) -> Update:
    keys = {name: Key(key).fold(name) for name in SHAPES}
    grad = {n: (i + 1) * keys[n].normal(s) for i, (n, s) in enumerate(SHAPES.items())}
    return Update(client, 4, grad, None, {"loss": 0.5})


def codec(bits: int):
    return CODECS.parse({"kind": "quantised", "bits": bits})


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_what_arrives_is_less_than_a_level_away(bits):
    sent = update()
    received = codec(bits).decode(codec(bits).encode(sent, ClientContext(order=ORDER)), ORDER)
    assert (received.client, received.n_examples, received.metrics) == (5, 4, {"loss": 0.5})
    for name, x in sent.grad.items():
        level = float(x.abs().max()) / (2 ** (bits - 1) - 1)
        assert float((received.grad[name] - x).abs().max()) <= level * (1 + 1e-5)
        assert received.grad[name].shape == x.shape
    assert codec(bits).encode(sent, ClientContext(order=ORDER)) == codec(bits).encode(
        sent, ClientContext(order=ORDER)
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_the_mean_over_clients_and_rounds_is_what_was_sent(bits):
    grad, count = update().grad, 2000
    total = {name: torch.zeros_like(x) for name, x in grad.items()}
    for i in range(count):
        order = Order(1, i, 5, tuple(SHAPES), PARAMS)
        back = codec(bits).decode(
            codec(bits).encode(Update(5, 4, grad, None, {}), ClientContext(order=order)), order
        )
        total = {name: total[name] + x for name, x in back.grad.items()}
    for name, x in grad.items():
        level = float(x.abs().max()) / (2 ** (bits - 1) - 1)
        # one rounding has a standard error of at most half a level
        assert float((total[name] / count - x).abs().max()) < 5 * 0.5 * level / count**0.5


def test_levels_by_hand():
    order = Order(1, 3, 5, ("x",), {"x": torch.zeros(3)})
    data = codec(4).encode(
        Update(5, 4, {"x": torch.tensor([7.0, -3.0, 0.0])}, None, {}), ClientContext(order=ORDER)
    )
    body = unpack_tensors(unpack(data, "quantised")[1])
    assert body["scales"].tolist() == [7.0]
    assert body["levels"].tolist() == [14 | 4 << 4, 7]  # level + 7, two a byte
    assert codec(4).decode(data, order).grad["x"].tolist() == [7.0, -3.0, 0.0]


def test_bytes_are_those_of_the_bits():
    names = tuple(f"layer.{i}.weight" for i in range(9))
    grad = {name: torch.ones(64) for name in names}
    sizes = {
        b: len(codec(b).encode(Update(5, 4, grad, None, {}), ClientContext(order=ORDER)))
        for b in (4, 8, 16)
    }
    assert sizes[8] - sizes[4] == pytest.approx(9 * 32, abs=8)  # headers are padded
    assert sizes[16] - sizes[8] == pytest.approx(9 * 64, abs=8)
    assert sizes[4] < 9 * 32 + 9 * 4 + 300
    assert (
        len(Dense().encode(Update(5, 4, grad, None, {}), ClientContext(order=ORDER))) > 4 * sizes[4]
    )


def test_nothing_and_other_number_formats():
    order = Order(1, 3, 5, ("x", "y"), {n: torch.zeros(2, dtype=torch.float64) for n in "xy"})
    grad = {"x": torch.zeros(2).double(), "y": torch.tensor([1.0, -1.0]).double()}
    back = (
        codec(8)
        .decode(codec(8).encode(Update(5, 4, grad, None, {}), ClientContext(order=order)), order)
        .grad
    )
    assert back["x"].tolist() == [0.0, 0.0]
    assert back["y"].dtype == torch.float64
    assert back["y"].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    sent = update()
    sent.grad["a"][0, 0] = bad
    with pytest.raises(ProtocolError, match="not finite"):
        codec(8).decode(codec(8).encode(sent, ClientContext(order=ORDER)), ORDER)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "missing tensors"),
        ({"scales": torch.ones(3), "levels": torch.zeros(22, dtype=torch.uint8)}, "shape"),
        ({"scales": torch.ones(2), "levels": torch.zeros(23, dtype=torch.uint8)}, "shape"),
        ({"scales": torch.ones(3), "levels": torch.zeros(23)}, "float32 instead of"),
    ],
)
def test_other_forms_are_refused(body, reason):
    with pytest.raises(ProtocolError, match=reason):
        codec(8).decode(pack("quantised", META, pack_tensors(body)), ORDER)
    with pytest.raises(ProtocolError, match="came to the order of client 5"):
        codec(8).decode(codec(8).encode(update(client=6), ClientContext(order=ORDER)), ORDER)
