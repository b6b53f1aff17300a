"""FedSVD: Lee et al., "FedSVD: adaptive orthogonalization for private federated learning with LoRA"
(NeurIPS 2025, arXiv 2505.12805): B alone is trained and averaged, as in FFA-LoRA; then the server
splits B A = U S V^T and sends A = V^T, with orthonormal rows that fit the data, and B = U S. The
product stays; noise on B has the energy sigma^2 d_o r, whatever A was.

Departures: in every round in which B is not 0 (published: a period and a warm-up; the SVD of 0
would make A the first r inputs). The head is trained (published: frozen).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from forefed.aggregate.aggregator import Metrics
from forefed.aggregate.factored import Factored, Pair
from forefed.core.lora import Factors, core_svd
from forefed.core.types import ServerContext


class FedSvd(Factored):
    """B averaged, then B A split again, so that A has orthonormal rows."""

    kind: Literal["fedsvd"] = "fedsvd"
    source: ClassVar[str] = "FedSVD, arXiv 2505.12805"
    individual: ClassVar[bool] = False

    def product(
        self,
        own: Sequence[Pair],
        shares: Sequence[float],
        old: Pair,
        at: Factors,
        ctx: ServerContext,
    ) -> tuple[Pair, Tensor | None, Metrics]:
        a, b = old[0].double(), old[1].double() * 0
        for p, (_, x) in zip(shares, own, strict=True):
            b = b + p * x
        if not bool(b.any()):
            return (old[0], b), None, {}
        u, s, vt = core_svd(b, a)
        r = len(a)
        return (vt[:r], u[:, :r] * s[:r]), None, {}

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.sharing.kind != "ffa_lora":
            yield (
                "aggregator.kind = 'fedsvd' averages B with A at rest; set sharing.kind = "
                "'ffa_lora'"
            )
