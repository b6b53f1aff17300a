"""What a client receives: the parameters, or what the server has done since its last visit.

Sources: DeComFL (arXiv 2405.15861), FedKSeed (arXiv 2312.06353). Records are for the scalar channel
alone: they hold the slopes, from which server and client rebuild the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

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

    def conflicts(self, config: Any) -> Iterator[str]:
        if not config.codec.sends_slopes:
            yield (
                "download.kind = 'scalars': clients repeat what the server did with slopes; set "
                "codec.kind = 'scalars', or download.kind = 'dense'"
            )


class PoolDownload(Download):
    """One sum of slopes per direction of the pool, from the first values on; no parameters."""

    kind: Literal["pool"] = "pool"
    source: ClassVar[str] = "FedKSeed, arXiv 2312.06353"
    by_records: ClassVar[bool] = True
    by_sums: ClassVar[bool] = True

    def conflicts(self, config: Any) -> Iterator[str]:
        codec = config.codec
        plain = (
            codec.sends_slopes
            and config.directions.lasting
            and config.directions.head_k != "all"
            and config.assign.kind == "everything"
            and config.client.linear
            and config.server.plain
            and config.client.optimiser.steady
            and not config.modifiers
            and config.trigger.kind == "round"
        )
        if not plain:
            yield (
                "download.kind = 'pool': sums of slopes tell the parameters only with codec.kind = "
                "'scalars', directions.kind = 'pool', a number as directions.head_k, assign.kind = "
                "'everything', plain gradient steps at the clients (client.optimiser.kind = 'sgd', "
                "no momentum, weight decay), no modifiers, no schedule and plain averaging at the "
                "server (server.kind = 'sgd', server.lr = 1, trigger.kind = 'round'); "
                "set these, or download.kind = 'scalars'"
            )


DOWNLOADS: Registry[Download] = Registry("download", [DenseDownload, ScalarDownload, PoolDownload])
