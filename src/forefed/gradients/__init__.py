"""Ways of getting a gradient, behind one protocol (``GradientEngine``)."""

from forefed.core.settings import Registry
from forefed.gradients.auto import Auto
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.block_local import BlockLocal
from forefed.gradients.engine import GradientEngine
from forefed.gradients.exact_head import ExactHead
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.gradients.sam import Sam
from forefed.gradients.structured import Structured
from forefed.gradients.surrogate import Surrogate

ENGINES: Registry[GradientEngine] = Registry(
    "engine",
    [
        Backprop,
        Checkpointed,
        Structured,
        Sam,
        BlockLocal,
        Forward,
        FiniteDifference,
        Surrogate,
        ExactHead,
        Auto,
    ],
)
__all__ = ["ENGINES", "GradientEngine"]
