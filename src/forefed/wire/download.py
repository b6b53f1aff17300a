"""What a client receives: the parameters, or what the server has done since its last visit.

Sources: DeComFL (arXiv 2405.15861), FedKSeed (arXiv 2312.06353). Records are for the scalar channel
alone: they hold the slopes, from which server and client rebuild the same bits.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.core.settings import Choice, Registry


class Download(Choice):
    """Base."""

    by_records: ClassVar[bool] = False
    by_sums: ClassVar[bool] = False


class DenseDownload(Download):
    """The parameters, in every round."""

    kind: Literal["dense"] = "dense"


class ScalarDownload(Download):
    """The slopes of the missed rounds; the parameters first, and where those are fewer bytes."""

    kind: Literal["scalars"] = "scalars"
    source: ClassVar[str] = "DeComFL, arXiv 2405.15861"
    by_records: ClassVar[bool] = True


class PoolDownload(Download):
    """One sum of slopes per direction of the pool, from the first values on; no parameters."""

    kind: Literal["pool"] = "pool"
    source: ClassVar[str] = "FedKSeed, arXiv 2312.06353"
    by_records: ClassVar[bool] = True
    by_sums: ClassVar[bool] = True


DOWNLOADS: Registry[Download] = Registry("download", [DenseDownload, ScalarDownload, PoolDownload])
