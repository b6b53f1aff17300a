"""What travels: framed messages, orders, and the codecs of updates."""

from forefed.wire.codec import Codec, Codecs
from forefed.wire.dense import Dense
from forefed.wire.feedsign import FeedSign
from forefed.wire.one_byte import OneByte
from forefed.wire.projections import Projections
from forefed.wire.quantised import Quantised
from forefed.wire.scalars import Scalars
from forefed.wire.sparse import Sparse

CODECS = Codecs("codec", [Dense, Quantised, Scalars, OneByte, FeedSign, Sparse])
__all__ = [
    "CODECS",
    "Codec",
    "Dense",
    "FeedSign",
    "OneByte",
    "Projections",
    "Quantised",
    "Scalars",
    "Sparse",
]
