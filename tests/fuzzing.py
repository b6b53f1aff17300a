"""Messages that no program of ours writes: other bytes, or another meaning with a right digest.

Flipped bits of a sealed message are found by its digest, so most mutations open a message, change
its JSON or its tensors' header, and seal it again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import torch

from forefed.core.errors import ProtocolError
from forefed.core.types import ClientContext, Order, Update
from forefed.deploy.envelope import Envelope, encode, read
from forefed.wire import Dense, FeedSign, OneByte, Quantised, Sparse
from forefed.wire.message import pack, unpack
from forefed.wire.orders import decode_broadcast, decode_order, encode_broadcast, encode_order
from forefed.wire.records import Entry, RoundRecord, decode_record, encode_record
from forefed.wire.scalars import Scalars

PARAMS = {"a.weight": torch.ones(3, 4), "b.weight": torch.ones(5), "head.bias": torch.zeros(2)}
ORDER = Order(1, 3, 2, ("a.weight", "head.bias"), PARAMS, {"m": torch.ones(2)})
GRAD = {name: PARAMS[name] for name in ORDER.assigned}
METRICS = {"loss": 0.5, "steps": 2.0}
SLOPES = {"body": torch.ones(2, 4), "head": torch.ones(2, 3)}
RESTING = {**SLOPES, "body": torch.tensor([[1.0, -1.0], [float("nan"), 0.0]])}
CODED = ("one_byte", "feedsign", "sparse")
"""Whose bodies are no tensors."""
RECORD = RoundRecord(3, (Entry(2, 7, ORDER.assigned, SLOPES),))

Decoder = Callable[[bytes], object]
MESSAGES: dict[str, tuple[bytes, Decoder]] = {
    "dense": (
        Dense().encode(Update(2, 7, GRAD, None, METRICS), ClientContext(order=ORDER)),
        lambda data: Dense().decode(data, ORDER),
    ),
    "quantised": (
        Quantised(bits=4).encode(Update(2, 7, GRAD, None, METRICS), ClientContext(order=ORDER)),
        lambda data: Quantised(bits=4).decode(data, ORDER),
    ),
    "scalars": (
        Scalars().encode(Update(2, 7, None, SLOPES, METRICS), ClientContext(order=ORDER)),
        lambda data: Scalars().decode(data, ORDER),
    ),
    "one_byte": (
        OneByte().encode(Update(2, 7, None, SLOPES, METRICS), ClientContext(order=ORDER)),
        lambda data: OneByte().decode(data, ORDER),
    ),
    "feedsign": (
        FeedSign().encode(Update(2, 7, None, RESTING, METRICS), ClientContext(order=ORDER)),
        lambda data: FeedSign().decode(data, ORDER),
    ),
    "sparse": (
        Sparse(ratio=0.3).encode(Update(2, 7, GRAD, None, METRICS), ClientContext(order=ORDER)),
        lambda data: Sparse(ratio=0.3).decode(data, ORDER),
    ),
    "state": (encode_broadcast(ORDER), decode_broadcast),
    "order": (encode_order(ORDER), lambda data: decode_order(data, PARAMS, {})),
    "record": (encode_record(RECORD, PARAMS), lambda data: decode_record(data, PARAMS)),
    "envelope": (
        encode(Envelope("train", "run", 3, 2, "{}", {"state": b"s" * 50, "order": b"o" * 9})),
        lambda data: read(stream(data)),
    ),
}

NASTY: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, -0.0, 0.5),
    *(float("nan"), float("inf"), "", "x" * 5000, "\u0000", "..", "é", "F64", "BF16", "U8"),
    *([], {}, [[]], [1, 2], [-1, 5], [0, 2**62], {"": {}}),
]
DEEP = b"[" * 200_000


def stream(data: bytes) -> Callable[[int], bytes]:
    """What ``recv`` of a socket with these bytes would be."""
    rest = memoryview(data)

    def receive(count: int) -> bytes:
        nonlocal rest
        part, rest = rest[:count], rest[count:]
        return bytes(part)

    return receive


def mutated(kind: str, data: bytes, draw: random.Random) -> bytes:
    """Another message of this kind."""
    chance = draw.random()
    if kind == "envelope":
        return scrambled(data, draw) if chance < 0.5 else with_header(data, draw)
    if chance < 0.2:
        return scrambled(data, draw)
    meta, body = unpack(data, kind)
    raw = bytes(body)
    if chance < 0.6:
        meta = nasty(meta, draw)
    elif raw:
        plain = chance < 0.75 or kind in CODED
        raw = scrambled(raw, draw) if plain else with_tensor_header(raw, draw)
    return pack(kind, meta, raw)


def scrambled(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut out, repeated, or put in."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, n = draw.randrange(len(out) + 1), draw.randint(1, 16)
        match draw.randrange(5):
            case 0:
                out[at : at + n] = draw.randbytes(n)
            case 1:
                del out[at : at + n]
            case 2:
                out[at:at] = out[at : at + n]
            case 3:
                out[at:at] = draw.choice([b"\xff" * n, bytes(n), b"[" * n, b"9" * n])
            case _:
                del out[at:]
    return bytes(out)


def nasty(value: Any, draw: random.Random) -> Any:
    """The same JSON with one value or key replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        inner = nasty(value[key], draw)
        if draw.random() < 0.1:
            return {
                **{k: v for k, v in value.items() if k != key},
                "k" * draw.randint(0, 99): inner,
            }
        return {**value, key: inner}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        # repeated in one place only: 50 x 50 long texts would be 12 MB of the fuzzer's own
        times = 1 if any(isinstance(x, list) for x in value) else draw.choice([1, 1, 1, 50])
        return [*value[:at], nasty(value[at], draw), *value[at + 1 :]] * times
    return draw.choice(NASTY)


def table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"": value}


def with_tensor_header(data: bytes, draw: random.Random) -> bytes:
    """Safetensors whose header says something else."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(nasty(json.loads(data[8 : 8 + length]), draw)).encode()
    claimed = draw.choice([len(header)] * 9 + [2**62])
    return claimed.to_bytes(8, "little") + header + data[8 + length :]


def with_header(data: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(data[4:8], "little")
    header = json.dumps(nasty(json.loads(data[8 : 8 + length]), draw)).encode()
    return data[:4] + len(header).to_bytes(4, "little") + header + data[8 + length :]


def deep(kind: str, data: bytes) -> bytes:
    """JSON nested more deeply than a parser that recurses can follow."""
    if kind == "envelope":
        return data[:4] + len(DEEP).to_bytes(4, "little") + DEEP
    return _sealed(data, DEEP)


def _sealed(like: bytes, meta: bytes) -> bytes:
    import hashlib
    import struct

    head = struct.Struct("<4sHHIQ8s")
    magic, version, kind, *_ = head.unpack_from(like)
    digest = hashlib.blake2b(meta, digest_size=8).digest()
    return head.pack(magic, version, kind, len(meta), 0, digest) + meta


def survives(decode: Decoder, data: bytes) -> bool:
    """Was it read? Refused is no fault; anything but a ProtocolError is, and goes through."""
    try:
        decode(data)
    except ProtocolError:
        return False
    return True
