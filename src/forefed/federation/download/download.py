"""What a client receives: the parameters, or what the server has done since its last visit.

Sources: DeComFL (arXiv 2405.15861), FedKSeed (arXiv 2312.06353). Records are for the scalar channel
alone: they hold the slopes, from which server and client rebuild the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from forefed.core.settings import Choice
from forefed.core.types import Params
from forefed.federation.server import Server
from forefed.federation.state import RunState


class Download(Choice):
    """Base."""

    by_records: ClassVar[bool] = False
    """Clients keep the parameters and are sent what was done since their last visit."""
    by_sums: ClassVar[bool] = False
    """The parameters follow from the run's first ones and sums of slopes, so nothing else may move
    them."""

    def server(self, plain: Server, first: Params) -> Server:
        """The server of a run that begins with ``first``, with the slots of ``plain``."""
        return plain

    def held(self, first: Params) -> RunState | None:
        """What every client of a run has before it is asked at all; None: nothing."""
        return None


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
