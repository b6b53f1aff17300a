"""An envelope as the content of a Flower message: one header record, and the blobs as arrays."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from forefed.core.errors import ProtocolError
from forefed.deploy.envelope import Envelope

HEADER, BLOBS = "forefed.header", "forefed.blobs"
BYTES = "bytes"  # Flower's arrays carry any bytes, cut in pieces, and once for many receivers


def to_records(envelope: Envelope) -> RecordDict:
    """An envelope as the content of a Flower message."""
    arrays = {n: Array(BYTES, (len(b),), BYTES, b) for n, b in envelope.blobs.items()}
    return RecordDict({HEADER: ConfigRecord({**envelope.header()}), BLOBS: ArrayRecord(arrays)})


def from_records(content: RecordDict) -> Envelope:
    """The inverse, for whatever came.

    Raises:
        ProtocolError: other records than a program of this version sends.
    """
    if content.keys() != {HEADER, BLOBS}:
        raise ProtocolError(f"foreign records: {sorted(content)[:5]}")
    header, blobs = content[HEADER], content[BLOBS]
    if not isinstance(header, ConfigRecord) or not isinstance(blobs, ArrayRecord):
        raise ProtocolError("the records are of other kinds")
    return Envelope.of(header, {name: array.data for name, array in blobs.items()})
