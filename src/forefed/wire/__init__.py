"""What travels: framed messages, orders, and the codecs of updates."""

from forefed.core.settings import Registry
from forefed.wire.codec import Codec
from forefed.wire.dense import Dense
from forefed.wire.scalars import Scalars

CODECS: Registry[Codec] = Registry("codec", [Dense, Scalars])
__all__ = ["CODECS", "Codec", "Dense", "Scalars"]
