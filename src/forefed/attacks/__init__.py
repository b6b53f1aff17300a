"""What hostile clients of a simulation send: one line here."""

from forefed.attacks.attack import Attack, AttackContext, Crafted, Hostile, NoAttack, Scene
from forefed.attacks.label_flip import LabelFlip
from forefed.attacks.optimised import DynOpt, MinMax, MinSum
from forefed.attacks.simple import (
    Extreme,
    InnerProduct,
    Lie,
    Mimic,
    Mpaf,
    Noise,
    ScaledFlip,
    SignFlip,
)
from forefed.attacks.stat_opt import StatOpt
from forefed.core.settings import Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    [
        NoAttack,
        SignFlip,
        ScaledFlip,
        InnerProduct,
        Noise,
        Extreme,
        LabelFlip,
        Mimic,
        Mpaf,
        Lie,
        StatOpt,
        DynOpt,
        MinMax,
        MinSum,
    ],
)
__all__ = [
    "ATTACKS",
    "Attack",
    "AttackContext",
    "Crafted",
    "DynOpt",
    "Extreme",
    "Hostile",
    "InnerProduct",
    "LabelFlip",
    "Lie",
    "Mimic",
    "MinMax",
    "MinSum",
    "Mpaf",
    "NoAttack",
    "Noise",
    "ScaledFlip",
    "Scene",
    "SignFlip",
    "StatOpt",
]
