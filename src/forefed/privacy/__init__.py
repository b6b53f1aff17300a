"""Differential privacy: what was released, what that costs, and the noise that pays for it."""

from forefed.privacy.accountant import epsilon, noise_for
from forefed.privacy.ledger import LEDGER, Ledger
from forefed.privacy.noise import bounded, gaussian, noised
from forefed.privacy.release import Release, capped

__all__ = [
    "LEDGER",
    "Ledger",
    "Release",
    "bounded",
    "capped",
    "epsilon",
    "gaussian",
    "noise_for",
    "noised",
]
