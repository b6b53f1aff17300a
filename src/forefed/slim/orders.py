"""Orders as arrays: what ``forefed.wire.orders`` writes."""

from __future__ import annotations

from dataclasses import dataclass

from forefed.core.errors import ProtocolError
from forefed.core.frame import unpack, unpack_arrays
from forefed.core.philox import Floats, Numbers

Arrays = dict[str, Floats]


@dataclass(frozen=True)
class Order:
    """What the server asks of this client in one round (``core.types.Order``)."""

    run: int
    round: int
    client: int
    assigned: tuple[str, ...]
    params: Arrays

    @property
    def key(self) -> Numbers:
        return Numbers(self.run).fold("client", self.round, self.client)


def read_state(data: bytes | memoryview) -> Arrays:
    """The parameters that the server sends to everybody of a round.

    Raises:
        ProtocolError: damaged, other than float32, or with more than parameters.
    """
    _, body = unpack(data, "state")
    arrays = unpack_arrays(body)
    beside = [n for n, x in arrays.items() if n.startswith(("told/", "carried/"))]
    if beside or any(x.dtype != "float32" for x in arrays.values()):
        raise ProtocolError(
            f"a client without torch takes float32 parameters alone, not {beside or 'others'}"
        )
    return arrays


def read_order(data: bytes | memoryview, params: Arrays) -> Order:
    """The order that goes with these parameters.

    Raises:
        ProtocolError: damaged, or of what this client does not do (records, sums).
    """
    meta, beside = unpack(data, "order")
    names = sorted(params)
    if meta.get("d") or len(beside):
        raise ProtocolError("a client without torch follows no records and joins no sums")
    try:
        run, round_, client = int(meta["run"]), int(meta["r"]), int(meta["c"])
        places = [int(i) for i in meta["a"]]
        if min(places, default=0) < 0:
            raise IndexError("a negative place")
        assigned = tuple(names[i] for i in places)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the order cannot be read: {error!r}") from None
    return Order(run, round_, client, assigned, params)
