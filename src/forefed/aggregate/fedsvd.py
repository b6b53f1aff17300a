"""FedSVD: Lee et al., "FedSVD: adaptive orthogonalization for private federated learning with LoRA"
(NeurIPS 2025, arXiv 2505.12805): B alone is trained and averaged, as in FFA-LoRA; then the server
splits B A = U S V^T and sends A = V^T, with orthonormal rows that fit the data, and B = U S. The
product stays; noise on B has the energy sigma^2 d_o r, whatever A was.

Departures: in every round in which B is not 0 (published: a period and a warm-up; the SVD of 0
would make A the first r inputs). The head is trained (published: frozen).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.aggregate.factored import Factored, Held, New
from forefed.core.lora import core_svd
from forefed.core.types import ServerContext


class FedSvd(Factored):
    """B averaged, then B A split again, so that A has orthonormal rows."""

    kind: Literal["fedsvd"] = "fedsvd"
    source: ClassVar[str] = "FedSVD, arXiv 2505.12805"
    individual: ClassVar[bool] = False
    at_rest: ClassVar[bool] = True

    def product(self, held: Held, ctx: ServerContext) -> New:
        a, (_, b) = held.old[0].double(), held.mean()
        if not bool(b.any()):
            return New((a, b))
        u, s, vt = core_svd(b, a)
        r = len(a)
        return New((vt[:r], u[:, :r] * s[:r]))
