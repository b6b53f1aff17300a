"""FedAvg whose clients recompute activations instead of keeping them (Chen et al., arXiv
1604.06174).

The mathematics of FedAvg at three forward-equivalents a step instead of two, in the memory of block
inputs and one block. Whoever claims that forward mode saves memory compares with this one
(arXiv 2506.21833).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDAVG_CHECKPOINTED = Strategy(
    name="fedavg_checkpointed",
    summary="FedAvg with recomputed activations: exact, in little memory.",
    source="arXiv 1602.05629; arXiv 1604.06174",
    sections={**FEDAVG.sections, "engine": {"kind": "checkpointed"}},
    fixed={**FEDAVG.fixed, "engine": ("checkpointed",)},
    own=FEDAVG.own,
)
