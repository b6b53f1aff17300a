"""Orders that are on their way, in the server's state: their bytes, as they were sent.

A server that goes on after a stop sends them again, and a site that has done one meanwhile answers
with what it kept (``deploy/journal.py``), so nobody's work is lost or done twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from forefed.core.states import State, below
from forefed.core.types import Order
from forefed.wire.orders import decode_broadcast, decode_order, encode_broadcast, encode_order


def flat_orders(orders: Mapping[int, Order]) -> State:
    """Each order [bytes] uint8, and each broadcast once; inverse: ``orders_of``."""
    numbers: dict[int, int] = {}
    """Of parameters, as they are in memory: the number of their broadcast."""
    tensors: State = {}
    for client, order in sorted(orders.items()):
        number = numbers.setdefault(id(order.params), len(numbers))
        if f"broadcast/{number}" not in tensors:
            tensors[f"broadcast/{number}"] = _tensor(encode_broadcast(order))
        tensors[f"order/{client}/{number}"] = _tensor(encode_order(order))
    return tensors


def orders_of(tensors: State) -> dict[int, Order]:
    """The orders by client; those with the same broadcast share their parameters."""
    sent = {n: decode_broadcast(_bytes(x)) for n, x in below(tensors, "broadcast").items()}
    orders = {}
    for place, x in below(tensors, "order").items():
        client, number = place.split("/")
        params, told, _ = sent[number]
        orders[int(client)] = decode_order(_bytes(x), params, told)
    return orders


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(x: Tensor) -> bytes:
    return x.cpu().numpy().tobytes()
