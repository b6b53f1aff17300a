"""A2: the tokens of a client's texts, from the gradient of the input embeddings.

Source: Melis et al., "Exploiting unintended feature leakage in collaborative learning" (arXiv
1805.04049), section 4.1: only the rows of tokens that occur have a gradient.
"""

from __future__ import annotations

from torch import Tensor


def tokens_of(embeddings_VD: Tensor, above: float = 0.0) -> set[int]:
    """The tokens whose rows of the change (or gradient) are not 0.

    Args:
        above: the largest element of a row that counts as 0, for channels that round.
    """
    return set((embeddings_VD.abs().amax(1) > above).nonzero()[:, 0].tolist())
