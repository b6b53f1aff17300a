"""What travels: framed messages, orders, and the codecs of updates."""

from forefed.wire.codec import Codec, Codecs
from forefed.wire.dense import Dense
from forefed.wire.download import DOWNLOADS, DenseDownload, Download
from forefed.wire.quantised import Quantised
from forefed.wire.scalars import Scalars

CODECS = Codecs("codec", [Dense, Quantised, Scalars])
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
