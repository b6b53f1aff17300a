"""Which parameters travel and which stay private: one file each, one line here."""

from forefed.core.settings import Registry
from forefed.sharing.best_of_three import BestOfThree
from forefed.sharing.everything import Everything
from forefed.sharing.fedsa_lora import FedSaLora
from forefed.sharing.ffa_lora import FfaLora
from forefed.sharing.fine_tune import FineTune
from forefed.sharing.flow import Flow
from forefed.sharing.hyperfl import HyperFl
from forefed.sharing.local_labels import LocalLabels
from forefed.sharing.local_only import LocalOnly
from forefed.sharing.personal_head import PersonalHead
from forefed.sharing.ranks import Ranks
from forefed.sharing.rolora import RoLora
from forefed.sharing.sharing import Sharing, Split

SHARINGS: Registry[Sharing] = Registry(
    "sharing",
    [
        Everything,
        PersonalHead,
        FfaLora,
        FedSaLora,
        RoLora,
        Ranks,
        FineTune,
        LocalOnly,
        LocalLabels,
        Flow,
        HyperFl,
        BestOfThree,
    ],
)
__all__ = [
    "SHARINGS",
    "BestOfThree",
    "Everything",
    "FedSaLora",
    "FfaLora",
    "FineTune",
    "Flow",
    "HyperFl",
    "LocalLabels",
    "LocalOnly",
    "PersonalHead",
    "Ranks",
    "RoLora",
    "Sharing",
    "Split",
]
