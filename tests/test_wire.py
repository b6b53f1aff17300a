"""Codec round trips for any tensors, and every kind of damage refused with its reason."""

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order, Update
from forefed.wire import CODECS, Dense
from forefed.wire.flat import finite
from forefed.wire.message import Limits, pack, pack_tensors, unpack, unpack_tensors
from forefed.wire.orders import decode_broadcast, decode_order, encode_broadcast, encode_order

NAMES = st.text("abcdefgh./_0123é", min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@given(st.dictionaries(NAMES, SHAPES, max_size=5), st.sampled_from([torch.float32, torch.float64]))
def test_tensors_survive_the_wire_bit_for_bit(shapes, dtype):
    tensors = {n: Key(i).normal(shape).to(dtype) for i, (n, shape) in enumerate(shapes.items())}
    packed = pack_tensors(tensors)
    assert trees.digest(unpack_tensors(packed)) == trees.digest(tensors)
    assert packed == safetensors.numpy.save({n: x.numpy() for n, x in tensors.items()})


def test_columns_travel_as_they_are():
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(unpack_tensors(pack_tensors({"x": x.T, "y": x[:, 1]}))["x"], x.T)


def test_an_update_is_finite_if_its_numbers_are_whatever_their_squares():
    large = np.full(3, 3e38, dtype=np.float32)
    assert finite(large) and finite(np.zeros(0, dtype=np.float32))
    for odd in (np.nan, np.inf):
        assert not finite(np.append(large, np.float32(odd)))


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False)),
    st.binary(max_size=50),
)
def test_messages_survive(meta, body):
    found, rest = unpack(pack("order", meta, body), "order")
    assert found == meta and bytes(rest) == body


ORDER = Order(7, 3, 5, ("b",), {"a": torch.ones(2), "b": torch.zeros(2, 2)})


def update_bytes(codec):
    context = ClientContext(order=ORDER)
    if codec.sends_slopes:
        slopes = {"body": torch.ones(2, 3)}
        return codec.encode(Update(5, 4, None, slopes, {"loss": 0.5}), context)
    return codec.encode(Update(5, 4, {"b": torch.ones(2, 2)}, None, {"loss": 0.5}), context)


@pytest.mark.parametrize("kind", CODECS.kinds())
def test_updates_come_back(kind):
    codec = CODECS[kind]()
    update = codec.decode(update_bytes(codec), ORDER)
    assert (update.client, update.n_examples, update.metrics) == (5, 4, {"loss": 0.5})
    assert (update.grad is None) == codec.sends_slopes


def payload_of(codec, seed=1):
    """An update of many sizes of numbers, over one tensor or two steps of two groups."""
    if not codec.sends_slopes:
        return Update(5, 4, {"b": Key(seed).normal((2, 2)) * 0.01}, None, {})
    sizes = torch.tensor([1e-5, 0.37, 1.0, 3e-4, 5e3])
    slopes = {g: Key(seed).fold(g).normal((2, 5)) * sizes for g in ("head", "body")}
    return Update(5, 4, None, slopes, {})


@pytest.mark.parametrize("kind", CODECS.kinds())
def test_what_a_client_counts_on_is_what_arrives(kind):
    codec, context = CODECS[kind](), ClientContext(order=ORDER)
    for seed in range(20):
        sent = payload_of(codec, seed)
        came = codec.decode(codec.encode(sent, context), ORDER)
        if not codec.sends_slopes:
            expected = codec.lossy(sent.grad, context)
            assert trees.digest(came.grad) == trees.digest(expected)
            assert codec.loses != (trees.digest(came.grad) == trees.digest(sent.grad))
            continue
        steps = [{g: x[t] for g, x in sent.slopes.items()} for t in range(2)]
        believed = [codec.lossy(slopes, context, t) for t, slopes in enumerate(steps)]
        expected = {g: torch.stack([b[g] for b in believed]) for g in sent.slopes}
        assert trees.digest(came.slopes) == trees.digest(expected)
        assert codec.loses != (trees.digest(came.slopes) == trees.digest(sent.slopes))
        # what a client has stepped along is sent as it is
        again = codec.encode(replace(sent, slopes=expected), context)
        assert trees.digest(codec.decode(again, ORDER).slopes) == trees.digest(expected)


@pytest.mark.parametrize("kind", CODECS.kinds())
def test_every_single_flipped_byte_is_refused(kind):
    codec = CODECS[kind]()
    data = update_bytes(codec)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        with pytest.raises(ProtocolError):
            codec.decode(bytes(damaged), ORDER)


@pytest.mark.parametrize("kind", CODECS.kinds())
def test_every_truncation_is_refused(kind):
    codec = CODECS[kind]()
    data = update_bytes(codec)
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            codec.decode(data[:length], ORDER)
    with pytest.raises(ProtocolError, match="padded"):
        codec.decode(data + b"\0", ORDER)


def test_another_version_says_so():
    data = bytearray(pack("dense", {}))
    data[4:6] = struct.pack("<H", 9)
    with pytest.raises(ProtocolError, match="version 9; this program speaks version 2"):
        unpack(bytes(data), "dense")


def test_messages_of_the_former_version_are_read_and_checked():
    data = bytearray(pack("dense", {"x": 1}, b"body"))
    data[4:6] = struct.pack("<H", 1)
    data[20:28] = hashlib.blake2b(bytes(data[28:]), digest_size=8).digest()
    meta, body = unpack(bytes(data), "dense")
    assert meta == {"x": 1} and bytes(body) == b"body"
    data[-1] ^= 1
    with pytest.raises(ProtocolError, match="digest"):
        unpack(bytes(data), "dense")


def test_limits_come_before_parsing():
    data = pack("dense", {"x": "y" * 1000}, b"z" * 1000)
    with pytest.raises(ProtocolError, match="too large"):
        unpack(data, "dense", Limits(meta=100))
    with pytest.raises(ProtocolError, match="too large"):
        unpack(data, "dense", Limits(body=100))


def test_another_kind_round_or_client_is_refused():
    codec = Dense()
    with pytest.raises(ProtocolError, match="dense message was expected, not scalars"):
        codec.decode(pack("scalars", {}), ORDER)
    for round_, client in ((2, 5), (3, 6)):
        other = ClientContext(order=replace(ORDER, round=round_, client=client))
        data = codec.encode(Update(client, 4, {"b": torch.ones(2, 2)}, None, {}), other)
        with pytest.raises(ProtocolError, match="came to the order of client 5 for round 3"):
            codec.decode(data, ORDER)


@pytest.mark.parametrize(
    ("grad", "reason"),
    [
        ({"a": torch.ones(2), "b": torch.ones(2, 2)}, "unexpected tensors"),
        ({}, "missing tensors"),
        ({"b": torch.ones(4)}, "shape"),
        ({"b": torch.full((2, 2), float("nan"))}, "not finite"),
    ],
)
def test_updates_that_do_not_fit_are_refused(grad, reason):
    codec = Dense()
    with pytest.raises(ProtocolError, match=reason):
        codec.decode(codec.encode(Update(5, 4, grad, None, {}), ClientContext(order=ORDER)), ORDER)


@pytest.mark.parametrize("n", [-1, 2.5, "many", None, True, 2**60])
def test_example_counts_are_counts(n):
    with pytest.raises(ProtocolError, match="number of examples"):
        Dense().decode(pack("dense", {"r": 3, "c": 5, "n": n, "m": {}}, b""), ORDER)


def test_foreign_dtypes_are_refused():
    body = pack_tensors({"b": torch.ones(2, 2, dtype=torch.int16)})
    with pytest.raises(ProtocolError, match="int16"):
        unpack_tensors(body)


def test_orders_come_back():
    asked = Order(2**63 + 1, 3, 10**9, ("b",), ORDER.params, {"note": torch.ones(1)})
    params, memo, carried = decode_broadcast(encode_broadcast(asked))
    found = decode_order(encode_order(asked), params, memo)
    assert (found.run, found.round, found.client, found.assigned) == (2**63 + 1, 3, 10**9, ("b",))
    assert trees.digest(found.params) == trees.digest(asked.params)
    assert trees.digest(found.broadcast) == trees.digest(asked.broadcast) and carried == {}
    assert found.key == asked.key


def test_an_order_with_an_impossible_assignment_is_refused():
    data = pack("order", {"run": 1, "r": 1, "c": 1, "a": [7]})
    with pytest.raises(ProtocolError, match="cannot be read"):
        decode_order(data, ORDER.params, {})
