"""What happens to an update on its way: one file each, one line here."""

from forefed.core.settings import Registry
from forefed.modifiers.clip import ClipNorm
from forefed.modifiers.curvature import Curvature
from forefed.modifiers.dgc import Dgc
from forefed.modifiers.dp_client import DpClient
from forefed.modifiers.dp_example import DpExample
from forefed.modifiers.error_feedback import ErrorFeedback
from forefed.modifiers.feddyn import FedDyn
from forefed.modifiers.fzoos import Fzoos
from forefed.modifiers.gauss_newton import GaussNewton
from forefed.modifiers.last_update import LastUpdate
from forefed.modifiers.logit_adjustment import LogitAdjustment
from forefed.modifiers.modifier import Modifier
from forefed.modifiers.momentum import Momentum
from forefed.modifiers.private import Private
from forefed.modifiers.proximal import Proximal
from forefed.modifiers.scaffold import Scaffold

MODIFIERS: Registry[Modifier] = Registry(
    "modifiers",
    [
        ClipNorm,
        Proximal,
        Scaffold,
        LogitAdjustment,
        FedDyn,
        Momentum,
        LastUpdate,
        Curvature,
        DpClient,
        DpExample,
        ErrorFeedback,
        Dgc,
        Fzoos,
        GaussNewton,
    ],
)
__all__ = [
    "MODIFIERS",
    "ClipNorm",
    "Curvature",
    "Dgc",
    "DpClient",
    "DpExample",
    "ErrorFeedback",
    "FedDyn",
    "Fzoos",
    "GaussNewton",
    "LastUpdate",
    "LogitAdjustment",
    "Modifier",
    "Momentum",
    "Private",
    "Proximal",
    "Scaffold",
]
