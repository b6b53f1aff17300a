"""Dual numbers: forward-mode differentiation of unmodified model code, one rule per operator."""

from forefed.gradients.dual import attention, losses, normalise, pointwise, products, shapes
from forefed.gradients.dual.tensor import RULES, Dual, Pass, ReadAgain, recording

__all__ = ["RULES", "Dual", "Pass", "ReadAgain", "recording"]
_RULES_OF = (attention, losses, normalise, pointwise, products, shapes)
"""Imported for their rules."""
