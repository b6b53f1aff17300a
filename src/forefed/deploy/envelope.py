"""What server and site say to each other: one header and named blobs.

Two carriers bring it on its way: Flower between the machines (flower_post.py), and a UNIX socket
between Flower's process at a site and the warm worker (worker_client.py, worker.py). On the socket:

    magic "FFEV" | header length u32 | JSON header | the blobs, one after the other

The blobs are messages of forefed.wire, which carry their own version and digest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from forefed.core.errors import ProtocolError
from forefed.core.untrusted import json_table

VERSION = 2
MAGIC = b"FFEV"
_HEAD = struct.Struct("<4sI")
MAX_HEADER = 1 << 20
MAX_BLOBS = 1 << 31

Asked = Literal["join", "train", "ask", "letters"]
Answered = Literal["joined", "trained", "answered", "summed", "refused", "failed"]
Kind = Literal[Asked, Answered]
"""Asked: "join" (may I take part in this run?), "train", "ask" (sums over this site's rows, for
example the head's statistics or held-out losses), and of an aggregator "letters" (several of the
last two, for its sites). Answered: "joined", "trained", "answered", "summed", "refused" (the site's
policy; ``text`` says why) and "failed" (``text`` names no more than the kind of the fault: details
stay in the site's log, as they may hold its texts)."""


@dataclass(frozen=True)
class Envelope:
    """One question or answer.

    ``run`` is the id of the run's first start, not its seed: with round and client it names a task,
    which is done once however often it is asked for. ``text``: the settings of the run as JSON, or
    a reason.
    """

    kind: Kind
    run: str
    round: int = 0
    client: int = -1
    text: str = ""
    blobs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of text and blobs."""
        return len(self.text.encode()) + sum(map(len, self.blobs.values()))

    def header(self) -> dict[str, str | int]:
        """All but the blobs."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "run": self.run,
            "round": self.round,
            "client": self.client,
            "text": self.text,
        }

    @staticmethod
    def of(header: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Envelope:
        """The inverse of ``header``, for whatever came.

        Raises:
            ProtocolError: another version, or a header that no program of this version writes.
        """
        if header.get("version") != VERSION:
            raise ProtocolError(
                f"version {header.get('version')!r} of the header; this program speaks {VERSION}"
            )
        if header.keys() != Envelope("join", "").header().keys():
            raise ProtocolError(f"unknown or missing fields in the header: {sorted(header)}")
        kind, run, text = header["kind"], header["run"], header["text"]
        numbers = (header["round"], header["client"])
        if kind not in get_args(Kind) or not isinstance(run, str) or not isinstance(text, str):
            raise ProtocolError("a field of the header has no value that this version knows")
        if any(not isinstance(x, int) or isinstance(x, bool) for x in numbers):
            raise ProtocolError("round and client are no whole numbers")
        return Envelope(kind, run, *numbers, text, dict(blobs))


def encode(envelope: Envelope) -> bytes:
    """For the socket."""
    lengths = [[name, len(blob)] for name, blob in envelope.blobs.items()]
    header = json.dumps({**envelope.header(), "blobs": lengths}).encode()
    return b"".join((_HEAD.pack(MAGIC, len(header)), header, *envelope.blobs.values()))


def read(receive: Callable[[int], bytes]) -> Envelope:
    """One envelope from a stream; ``receive(n)`` returns 1 to n bytes, or b"" at its end.

    Raises:
        ProtocolError: the stream ends early, or holds something else.
    """
    magic, length = _HEAD.unpack(_exactly(receive, _HEAD.size))
    if magic != MAGIC or length > MAX_HEADER:
        raise ProtocolError("the socket carries something that is no envelope")
    try:
        header = json_table(_exactly(receive, length), "the envelope's header")
        lengths = [(str(name), int(n)) for name, n in header.pop("blobs")]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ProtocolError(f"the envelope's header cannot be read: {error!r}") from None
    if any(n < 0 for _, n in lengths) or sum(n for _, n in lengths) > MAX_BLOBS:
        raise ProtocolError("the envelope's blobs are too large")
    return Envelope.of(header, {name: _exactly(receive, n) for name, n in lengths})


def _exactly(receive: Callable[[int], bytes], count: int) -> bytes:
    parts = []
    while count:
        part = receive(min(count, 1 << 20))
        if not part:
            raise ProtocolError("the other side ended the connection in the middle of an envelope")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
