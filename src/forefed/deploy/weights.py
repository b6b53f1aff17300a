"""Do two machines hold the same frozen model, and cut texts alike?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

import torch

from forefed.models.load import load_tokenizer
from forefed.models.quantised import frozen_dtype, tensors_of
from forefed.models.settings import ModelSettings


def model_of(model: Any, settings: ModelSettings, trained: Collection[str]) -> dict[str, str]:
    """What a server and its sites compare when one joins: ``weights_of`` and ``tokenizer_of``."""
    return {**weights_of(model, trained), **tokenizer_of(load_tokenizer(settings))}


def weights_of(model: Any, trained: Collection[str] = ()) -> dict[str, str]:
    """ "weights": a digest of every frozen tensor of the model and of what its head reads
    (``pooling``, ``layers``), "dtype": the format it computes in.

    A difference between equal formats means another model under the same name; between different
    formats the digest says nothing.
    """
    digest = hashlib.blake2b(digest_size=16)
    # without a word of its own a model reads what its class in transformers does
    reads = getattr(model, "pooling", "pooler"), getattr(model, "layers", "last")
    digest.update(" ".join(reads).encode())
    for name, x in tensors_of(model):
        if name in trained or REPLACED in name:
            continue  # its values come with every order; or nobody computes with it
        plain = name.replace(ADAPTED, ".")  # which matrices are adapted is no question of weights
        digest.update(f"{plain} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    dtype = str(frozen_dtype(model)).removeprefix("torch.")
    return {"weights": digest.hexdigest(), "dtype": dtype}


ADAPTED = ".base_layer."
"""What PEFT puts into the name of a matrix that it adapts."""
REPLACED = ".original_module."
"""Where PEFT keeps a module that is trained in whole as it was before."""
PROBE = "The QUICK brown\tfox's 0123456789 jumps: \u00e9\u00df\u4e2d \U0001f600  over (the) w4 dog."
"""Case, accents, digits, blanks, punctuation and what no vocabulary has."""


def tokenizer_of(tokenizer: Any) -> dict[str, str]:
    """ "tokenizer": a digest of the vocabulary, the special tokens, how a text is cut and how a
    conversation is written: of what it does, so that versions of its files do not matter."""
    about: list[Any] = [
        sorted(tokenizer.get_vocab().items()),
        [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id],
        tokenizer(PROBE)["input_ids"],
    ]
    if tokenizer.chat_template:
        about.append(str(tokenizer.chat_template))
    return {"tokenizer": hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()}
