"""Two paths beside one matrix, and a gate between them (Flow, arXiv 2211.15281).

An adapted matrix [O, I] with a common B and a client's own one becomes, for every row x of inputs,

    W x + s ((1 - q) B + q B_own) A x,      q = r_0 + r_1 gate(x),   gate(x) = sigmoid(z(x)),
    z(x) = u . tanh(V x) + c

``route`` = (r_0, r_1, r_2): (0, 0, 0) is the common path alone, (1, 0, 0) the own one, (0, 1, 0)
the soft gate, and with r_2 = 1 the gate is rounded to 0 or 1. Names stand behind the matrix's own.

Legend: O outputs, I inputs, r rank, h width of the gate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

OWN, GATE_IN, GATE_OUT, ROUTE = "flow_own", "flow_gate_in", "flow_gate_out", "flow_route"
"""B_own [O, r]; V [h, I]; u and c as one vector [h + 1]; (r_0, r_1, r_2)."""
COMMON, ALONE, SOFT, HARD = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 1.0)


def part_of(name: str) -> str:
    """Which of the parts above a parameter is; empty: none of them."""
    last = name.rsplit(".", 1)[-1]
    return last if last in (OWN, GATE_IN, GATE_OUT, ROUTE) else ""


def beside(x: Tensor, low: Tensor, b_Or: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """q (B_own - B) A x, what is added to the common path: [..., O].

    Args:
        x: inputs [..., I], which the gate reads.
        low: A x [..., r].
        parts: ``OWN``, ``GATE_IN``, ``GATE_OUT`` and ``ROUTE``.
    """
    u, route = parts[GATE_OUT], parts[ROUTE]
    z = torch.tanh(x @ parts[GATE_IN].T) @ u[:-1] + u[-1]
    gate = torch.sigmoid(z)
    rounded = (z > 0).to(gate.dtype)
    q = route[0] + route[1] * (gate + route[2] * (rounded - gate))
    return q[..., None] * (low @ (parts[OWN] - b_Or).T)
