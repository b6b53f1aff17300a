"""The frame around everything that travels or is stored: version, limits, digest, nothing pickled.

    magic "FFED" | version u16 | kind u16 | meta length u32 | body length u64 | digest 8 bytes
    meta: compact JSON | body: safetensors

All integers little-endian. The digest over meta and body catches damage; it is no signature: who
may speak is the transport's business. Since version 2 it is XXH3-64, some fifty times as fast;
version 1 had BLAKE2b-64 and is read for one more version, in logs and checkpoints too.

No torch here: wire/message.py has tensors, and a client without torch (forefed.slim) has arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import xxhash
from numpy.typing import NDArray

from forefed.core.errors import ProtocolError
from forefed.core.untrusted import json_table

MAGIC = b"FFED"
VERSION = 2
FORMER = 1
_HEAD = struct.Struct("<4sHHIQ8s")
_LENGTH = struct.Struct("<Q")
"""How long the header of safetensors is."""
_COMPACT = json.JSONEncoder(separators=(",", ":"))
SMALL = 1 << 20
"""Bytes of arrays up to which making their header anew would cost more than their numbers."""
MESSAGES = {
    "order": 1,
    "state": 4,
    "record": 5,
    "log": 6,
    "round": 7,
    "question": 9,
    "answer": 10,
    "channel": 21,
    "masked": 22,
    "summed": 23,
    "have": 40,
    "given": 41,
}
"""The kinds that are no codec's, with their numbers on the wire."""

KINDS = dict(MESSAGES)
"""All kinds: the registry of codecs adds each of its entries, with its own number."""

OURS = 1000
"""Numbers below are for Forefed's own kinds."""

ALLOWED_DTYPES = tuple(
    np.dtype(name) for name in ("float16", "float32", "float64", "int32", "int64", "uint8")
)


@dataclass(frozen=True)
class Limits:
    """What a receiver accepts at most, in bytes; checked before anything is parsed."""

    meta: int = 1 << 20
    body: int = 1 << 31


DEFAULT_LIMITS = Limits()


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as safetensors bytes."""
    if sum(x.nbytes for x in arrays.values()) > SMALL:
        return safetensors.numpy.save({n: np.asarray(x, order="C") for n, x in arrays.items()})
    header, names = layout(tuple((n, x.dtype.str, x.shape) for n, x in arrays.items()))
    return b"".join([header, *(arrays[n].tobytes() for n in names)])


@lru_cache(maxsize=256)
def layout(form: tuple[tuple[str, str, tuple[int, ...]], ...]) -> tuple[bytes, tuple[str, ...]]:
    """The bytes before the numbers of arrays of these names, formats and shapes, and the names in
    the order in which their numbers follow."""
    like = {n: np.zeros(shape, dtype) for n, dtype, shape in form}
    packed = safetensors.numpy.save(like)
    start = _LENGTH.size + _LENGTH.unpack_from(packed)[0]
    places = json.loads(packed[_LENGTH.size : start])
    return packed[:start], tuple(sorted(like, key=lambda n: places[n]["data_offsets"]))


def unpack_arrays(data: bytes | memoryview) -> dict[str, NDArray[Any]]:
    """The inverse of ``pack_arrays``.

    Raises:
        ProtocolError: not safetensors, or a dtype that no message of ours uses.
    """
    try:
        arrays = safetensors.numpy.load(bytes(data))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the tensors cannot be read: {error}") from None
    for name, x in arrays.items():
        if x.dtype not in ALLOWED_DTYPES:
            raise ProtocolError(f"tensor {name!r} has dtype {x.dtype}, which no message uses")
    return arrays


def pack(kind: str, meta: dict[str, Any], body: bytes = b"") -> bytes:
    """One message, of the present version."""
    encoded = _COMPACT.encode(meta).encode()
    digest = xxhash.xxh3_64(encoded)
    digest.update(body)
    head = _HEAD.pack(MAGIC, VERSION, KINDS[kind], len(encoded), len(body), digest.digest())
    return b"".join((head, encoded, body))


def unpack(
    data: bytes | memoryview, kind: str, limits: Limits = DEFAULT_LIMITS
) -> tuple[dict[str, Any], memoryview]:
    """Meta data and body of a message of the expected kind.

    Raises:
        ProtocolError: not our format, another version or kind, over a limit, damaged.
    """
    if len(data) < _HEAD.size:
        raise ProtocolError(f"a message has at least {_HEAD.size} bytes, this one {len(data)}")
    magic, version, kind_id, meta_length, body_length, digest = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError("this is no Forefed message (wrong first bytes)")
    if version not in (VERSION, FORMER):
        raise ProtocolError(f"message version {version}; this program speaks version {VERSION}")
    if kind_id != KINDS[kind]:
        names = {number: name for name, number in KINDS.items()}
        raise ProtocolError(f"a {kind} message was expected, not {names.get(kind_id, kind_id)}")
    if meta_length > limits.meta or body_length > limits.body:
        raise ProtocolError(
            f"the message is too large: {meta_length} + {body_length} bytes, "
            f"at most {limits.meta} + {limits.body}"
        )
    if len(data) != _HEAD.size + meta_length + body_length:
        raise ProtocolError(
            f"the message is cut or padded: {len(data)} bytes instead of "
            f"{_HEAD.size + meta_length + body_length}"
        )
    view = memoryview(data)[_HEAD.size :]
    if _digest(view, version) != digest:
        raise ProtocolError("the message is damaged (its digest does not match)")
    meta = json_table(bytes(view[:meta_length]), "the message's meta data")
    return meta, view[meta_length:]


def _digest(view: memoryview, version: int) -> bytes:
    if version == FORMER:
        return hashlib.blake2b(view, digest_size=8).digest()
    return xxhash.xxh3_64_digest(view)


HEAD_BYTES = _HEAD.size


def kind_of(data: bytes | memoryview) -> str:
    """The kind that a message says it is ("": none that is known)."""
    if len(data) < HEAD_BYTES:
        return ""
    number = _HEAD.unpack_from(data)[2]
    return next((kind for kind, n in KINDS.items() if n == number), "")


def frame_bytes(head: bytes) -> int:
    """The length of the message that begins with these ``HEAD_BYTES``.

    Raises:
        ProtocolError: no message begins so.
    """
    if len(head) < HEAD_BYTES or head[:4] != MAGIC:
        raise ProtocolError("a log holds something that is no whole Forefed message")
    *_, meta_length, body_length, _ = _HEAD.unpack_from(head)
    return HEAD_BYTES + int(meta_length) + int(body_length)


def frames(data: bytes) -> Iterator[bytes]:
    """The messages of which ``data`` is the concatenation.

    Raises:
        ProtocolError: the last one is cut, or something else stands between them.
    """
    while data:
        length = frame_bytes(data[:HEAD_BYTES])
        yield data[:length]
        data = data[length:]


def short(value: float) -> float | int | None:
    """A metric as it travels: whole, or six significant digits; None for what is not a number."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")
