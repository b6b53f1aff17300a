"""HyperFL: Guo et al., AAAI 2025 (arXiv 2412.07187): a common network makes each client's adapter
from an embedding of its own (``local/hyperfl.py``, ``sharing/hyperfl.py``).

Departures: beside those of ``local/hyperfl.py``, r = 2, as the network has 128 numbers for every
one that it makes.
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

HYPERFL = Strategy(
    name="hyperfl",
    summary="A common network makes each client's adapter from an embedding of its own.",
    source="arXiv 2412.07187",
    sections={
        **FEDAVG.sections,
        "adapter": {"kind": "lora_hyper", "r": 2, "alpha": 4.0},
        "client": {**FEDAVG.sections["client"], "kind": "hyperfl"},
        "sharing": {"kind": "hyperfl"},
    },
    fixed={
        **FEDAVG.fixed,
        "adapter": ("lora_hyper",),
        "client": ("hyperfl",),
        "sharing": ("hyperfl",),
    },
)
