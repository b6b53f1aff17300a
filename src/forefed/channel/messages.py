"""What a channel's phases say, as bytes: one message each way, for one client and one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forefed.channel.fixed_point import Words
from forefed.core.errors import ProtocolError
from forefed.wire.message import pack, unpack

SESSION_BYTES = 8


@dataclass(frozen=True)
class Message:
    """``phase`` of a session; ``group`` counts the clients that are in it now, ``clients`` are the
    neighbours that the message is about, in ascending order, and ``body`` holds the same number of
    bytes for each of them, but for those in ``without``."""

    phase: str
    session: bytes
    group: int = 0
    clients: tuple[int, ...] = ()
    body: bytes = b""
    without: tuple[int, ...] = ()

    @staticmethod
    def of(phase: str, session: bytes, group: int, parts: Mapping[int, bytes]) -> Message:
        """With one part for each of these clients; it may be empty."""
        ordered = tuple(sorted(parts))
        body = b"".join(parts[c] for c in ordered)
        none = tuple(c for c in ordered if not parts[c])
        return Message(phase, session, group, ordered, body, none)

    def parts(self, size: int) -> dict[int, bytes]:
        """The parts again.

        Raises:
            ProtocolError: another number of bytes.
        """
        full = [c for c in self.clients if c not in self.without]
        if len(self.body) != size * len(full):
            raise ProtocolError(
                f"phase '{self.phase}': {len(self.body)} bytes for {len(full)} clients"
            )
        cut = (self.body[i : i + size] for i in range(0, len(self.body), size))
        return dict.fromkeys(self.without, b"") | dict(zip(full, cut, strict=True))

    def encode(self) -> bytes:
        about: dict[str, Any] = {"p": self.phase, "s": self.session.hex()}
        if self.group:
            about |= {"n": self.group, "c": list(self.clients)}
        if self.without:
            about["w"] = [self.clients.index(c) for c in self.without]
        return pack("channel", about, self.body)

    @staticmethod
    def decode(data: bytes) -> Message:
        """The inverse, for whatever came.

        Raises:
            ProtocolError: damaged, or of a form that nobody of this version sends.
        """
        meta, body = unpack(data, "channel")
        try:
            session = bytes.fromhex(meta["s"])
            clients = tuple(_number(c) for c in meta.get("c", ()))
            group = _number(meta.get("n", 0))
            phase = str(meta["p"])
            without = tuple(clients[_number(i)] for i in meta.get("w", ()))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ProtocolError(f"a channel's message cannot be read: {error!r}") from None
        if len(session) != SESSION_BYTES or list(clients) != sorted(set(clients)):
            raise ProtocolError("a channel's message names clients twice, or no session")
        return Message(phase, session, group, clients, bytes(body), without)


def encode_masked(session: bytes, words: bytes) -> bytes:
    """A client's words with its masks, as they travel."""
    return pack("masked", {"s": session.hex()}, words)


def decode_masked(data: bytes, session: bytes) -> memoryview:
    """The words of this session.

    Raises:
        ProtocolError: damaged, or of another session (one that was sent before, for example).
    """
    meta, body = unpack(data, "masked")
    if meta.get("s") != session.hex():
        raise ProtocolError("masked words of another sum")
    return body


def encode_sum(session: bytes, clients: Sequence[int], words: Words) -> bytes:
    """The words of one client, or what an aggregator has added up of several, as they travel."""
    about = {"s": session.hex(), "c": sorted(clients), "a": len(words.about)}
    return pack("summed", {**about, "b": 8 * words.values.itemsize}, words.to_bytes())


def decode_sum(data: bytes) -> tuple[bytes, tuple[int, ...], Words]:
    """Session, clients in ascending order, and words.

    Raises:
        ProtocolError: damaged, or of a form that nobody of this version sends.
    """
    meta, body = unpack(data, "summed")
    try:
        session, bits = bytes.fromhex(meta["s"]), meta["b"]
        clients, about = tuple(_number(c) for c in meta["c"]), _number(meta["a"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"a sum cannot be read: {error!r}") from None
    if len(session) != SESSION_BYTES or not clients or list(clients) != sorted(set(clients)):
        raise ProtocolError("a sum names clients twice, or none, or no session")
    values = 8 * (len(body) - 8 * about) // bits if bits in (32, 64) else -1
    if values < 0:
        raise ProtocolError("a sum of words of another size")
    return session, clients, Words.of_bytes(body, Words.zero(values, about, bits))


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no number of a client")
    return value
