"""What travels: framed messages, orders, and the codecs of updates."""

from forefed.core.settings import Registry
from forefed.wire.codec import Codec
from forefed.wire.dense import Dense
from forefed.wire.download import DOWNLOADS, DenseDownload, Download
from forefed.wire.quantised import Quantised
from forefed.wire.scalars import Scalars

CODECS: Registry[Codec] = Registry("codec", [Dense, Quantised, Scalars])
__all__ = [
    "CODECS",
    "DOWNLOADS",
    "Codec",
    "Dense",
    "DenseDownload",
    "Download",
    "Quantised",
    "Scalars",
]
