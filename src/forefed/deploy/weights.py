"""Do two machines hold the same frozen model?"""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def weights_of(model: Any) -> dict[str, str]:
    """ "weights": a digest of every tensor of the model and of what its head reads (``pooling``),
    "dtype": the format it computes in.

    A difference between equal formats means another model under the same name; between different
    formats the digest says nothing.
    """
    digest = hashlib.blake2b(str(getattr(model, "pooling", "")).encode(), digest_size=16)
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"weights": digest.hexdigest(), "dtype": dtype}
