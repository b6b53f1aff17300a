"""An envelope as the content of a Flower message: a header record, and its blobs.

Every object of a message is a request of its own on each of the six ways from a server to a site's
process and back, at 10 ms of processor time or so (flwr 1.41): eight objects with two blobs as
arrays, three with them in the header. Large ones are arrays all the same: those are kept once for
all receivers, and cut in pieces.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from forefed.core.errors import ProtocolError
from forefed.deploy.envelope import Envelope

HEADER, BLOBS = "forefed.header", "forefed.blobs"
BYTES = "bytes"  # Flower's arrays carry any bytes
INSIDE = "blob "
"""Before a blob's name, in the header."""
SMALL = 1 << 16
"""Bytes of all blobs of an envelope that travel in its header."""


def to_records(envelope: Envelope) -> RecordDict:
    """An envelope as the content of a Flower message."""
    if sum(map(len, envelope.blobs.values())) <= SMALL:
        inside = {INSIDE + name: blob for name, blob in envelope.blobs.items()}
        return RecordDict({HEADER: ConfigRecord({**envelope.header(), **inside})})
    arrays = {n: Array(BYTES, (len(b),), BYTES, b) for n, b in envelope.blobs.items()}
    return RecordDict({HEADER: ConfigRecord({**envelope.header()}), BLOBS: ArrayRecord(arrays)})


def from_records(content: RecordDict) -> Envelope:
    """The inverse, for whatever came.

    Raises:
        ProtocolError: other records than a program of this version sends.
    """
    if content.keys() not in ({HEADER}, {HEADER, BLOBS}):
        raise ProtocolError(f"foreign records: {sorted(content)[:5]}")
    header, arrays = content[HEADER], content.get(BLOBS, ArrayRecord())
    if not isinstance(header, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ProtocolError("the records are of other kinds")
    inside = {n.removeprefix(INSIDE): b for n, b in header.items() if n.startswith(INSIDE)}
    blobs = {n: b for n, b in inside.items() if isinstance(b, bytes)}
    if len(blobs) < len(inside) or (blobs and arrays):
        raise ProtocolError("the header's blobs are no bytes, or in two places")
    said = {n: x for n, x in header.items() if not n.startswith(INSIDE)}
    return Envelope.of(said, blobs or {name: array.data for name, array in arrays.items()})
