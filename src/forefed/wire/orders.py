"""Orders as bytes: one broadcast of the parameters per round, one small header per client.

Every client receives both, and both are counted for every client; the broadcast is encoded once.
"""

from __future__ import annotations

from forefed.core.errors import ProtocolError
from forefed.core.types import Order, Params
from forefed.wire.message import pack, pack_tensors, unpack, unpack_tensors

_TOLD = "told/"  # prefixes of what the server broadcasts beside the parameters
_CARRIED = "carried/"


def encode_broadcast(order: Order) -> bytes:
    """The tensors that every client of the round receives."""
    # whoever follows by records (a digest tells) makes the broadcast of what is carried
    told = {} if order.digest else order.broadcast
    beside = {_TOLD + name: x for name, x in told.items()}
    beside |= {_CARRIED + name: x for name, x in order.carried.items()}
    return pack("state", {"r": order.round}, pack_tensors({**order.params, **beside}))


def decode_broadcast(data: bytes) -> tuple[Params, Params, Params]:
    """Parameters, what modifiers tell, and what else of the server's state is carried."""
    _, body = unpack(data, "state")
    params: Params = {}
    told: Params = {}
    carried: Params = {}
    for name, x in unpack_tensors(body).items():
        if name.startswith(_TOLD):
            told[name.removeprefix(_TOLD)] = x
        elif name.startswith(_CARRIED):
            carried[name.removeprefix(_CARRIED)] = x
        else:
            params[name] = x
    return params, told, carried


def encode_order(order: Order) -> bytes:
    """The client's own header; assigned tensors by their position in the sorted names."""
    position = {name: i for i, name in enumerate(sorted(order.params))}
    meta = {
        "run": order.run,
        "r": order.round,
        "c": order.client,
        "a": [position[name] for name in order.assigned],
        **({"d": order.digest} if order.digest else {}),
    }
    return pack("order", meta, order.channel)


def decode_order(data: bytes, params: Params, told: Params) -> Order:
    """The order that goes with this broadcast.

    Raises:
        ProtocolError: damaged, or of a form that no server of this version sends.
    """
    meta, beside = unpack(data, "order")
    names = sorted(params)
    try:
        run, round_, client = int(meta["run"]), int(meta["r"]), int(meta["c"])
        assigned = tuple(names[int(i)] for i in meta["a"])
        digest = str(meta.get("d", ""))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the order cannot be read: {error!r}") from None
    return Order(run, round_, client, assigned, params, told, digest=digest, channel=bytes(beside))
