"""Questions beside training, and their answers, as bytes: tensors there, sums of tensors back.

A question is the same for all clients of a round; ``about`` names what its numbers belong to (the
model and its pooling), and an answer about something else is refused.
"""

from __future__ import annotations

from forefed.core.errors import ProtocolError
from forefed.core.types import Params
from forefed.wire.message import pack, pack_tensors, unpack, unpack_tensors


def encode_question(kind: str, about: str, tensors: Params) -> bytes:
    return pack("question", {"k": kind, "of": about}, pack_tensors(tensors))


def decode_question(data: bytes) -> tuple[str, str, Params]:
    """Kind, what it is about, tensors."""
    meta, body = unpack(data, "question")
    return str(meta.get("k")), str(meta.get("of")), unpack_tensors(body)


def encode_answer(kind: str, about: str, tensors: Params) -> bytes:
    return pack("answer", {"k": kind, "of": about}, pack_tensors(tensors))


def decode_answer(data: bytes, kind: str, about: str) -> Params:
    """Raises ProtocolError: damaged, or an answer to another question."""
    meta, body = unpack(data, "answer")
    if meta.get("k") != kind:
        raise ProtocolError(f"an answer to '{meta.get('k')}' came for '{kind}'")
    if meta.get("of") != about:
        raise ProtocolError("the answer is about another model, or another pooling of it")
    return unpack_tensors(body)
