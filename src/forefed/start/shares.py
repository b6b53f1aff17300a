"""Noise on the start's sums that nobody adds alone: every client its share, under a secure sum.

Source: distributed noise generation (Dwork et al., "Our data, ourselves", EUROCRYPT 2006); under a
secure sum of whole numbers Kairouz, Liu and Steinke, "The distributed discrete Gaussian mechanism
for federated learning with secure aggregation" (ICML 2021). With h clients that are honest and
whose words are in the sum at least (``channel.least`` - ``start.colluding``), each adds

    round(2^b s / sqrt(h) g),   g standard normal,   s the whole noise's deviation (private.py),

to 2^b times its whole sums. So what h of them add has the deviation s, whatever the others leave
out or tell; all n together have s sqrt(n / h), which is the price of each that may be missing.

The sums are whole already, and rounded *before* the noise: nothing is added to how far one unit
moves them. b is such that a share's deviation is 2^16 units at least (``privacy.noise.FINE``).
There a rounded Gaussian is the discrete one up to a factor of 1 + 1e-8 within 8.3 deviations, and
the sum of h discrete ones is one of h times the variance up to 10 h exp(-2 pi^2 2^31) (Kairouz et
al., Theorem 5): no share needs the others' rounding to be Gaussian.

Departure: the rounded Gaussian of the product's own generator, not an exact sampler.

A share is drawn from the secret of one exchange, never twice: with one noise in two sums whose
groups differ by a client, their difference would be this client's sums under its share alone. So
every sum that is opened is a release of its own, also where a run goes on after a stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forefed.core.keys import Secret
from forefed.core.types import Params
from forefed.privacy import Release, gaussian
from forefed.privacy.noise import FINE
from forefed.start.private import deviation_of, planned, possible, tag_of
from forefed.start.sums import STEP, Sums
from forefed.start.targets import Targets

if TYPE_CHECKING:
    from forefed.start.closed_form import ClosedForm


@dataclass(frozen=True)
class Shares:
    """What every client adds to its sums, and how the server reads their total.

    Attributes:
        honest: h, the clients whose noise counts.
    """

    start: ClosedForm
    honest: int

    @staticmethod
    def of(start: ClosedForm, least: int) -> Shares | None:
        """Of sums over so many clients at least; None: the server adds the noise, or nobody."""
        if not start.private or start.noise_by == "server":
            return None
        return Shares(start, least - start.colluding)

    def shapes(self, targets: Targets, width: int) -> dict[str, tuple[int, ...]]:
        """Of the whole numbers that a client adds."""
        return {
            n: tuple(x.shape) for n, x in self._parts(Sums.zero(targets.columns, width), targets)
        }

    def added(self, sums: Sums, targets: Targets, secret: Secret) -> Params:
        """A client's sums with its share of the noise, int64.

        Args:
            secret: of this exchange, and of this client.
        """
        found = {}
        for name, whole in self._parts(sums, targets):
            bits, deviation = self._share(name, len(sums.x), targets)
            drawn = gaussian(secret.fold("noise", "start", name), whole.shape)
            found[name] = (whole << bits) + (deviation * drawn).round().to(torch.int64)
        return found

    def opened(
        self, total: Params, clients: int, targets: Targets, secret: Secret
    ) -> tuple[Sums, Release]:
        """Sums such as rows could have, near the total of so many clients; what their release is.

        Args:
            secret: by which the release is named.
        """
        width = total["xy"].shape[1]
        scales = self._scales(targets)
        apart = {
            name: x.double() * 2.0 ** -self._share(name, width, targets)[0] * scales[name]
            for name, x in total.items()
        }
        on, above = _diagonal(width)
        apart["xx"] = torch.cat([apart["xx"][on], math.sqrt(2) * apart["xx"][above]])
        deviation = deviation_of(self.start, targets) * math.sqrt(clients / self.honest)
        release = replace(planned(self.start), tag=tag_of(apart, secret))
        return possible(self.start, targets, apart, deviation), release

    def _parts(self, sums: Sums, targets: Targets) -> list[tuple[str, Tensor]]:
        """Of the sums those that do not follow from others, in the order of their names."""
        names = ("xx", "xy", "y") if targets.partition else ("n", "x", "xx", "xy", "y")
        return [(name, getattr(sums, name)) for name in names]

    def _scales(self, targets: Targets) -> dict[str, float]:
        """Of a whole unit of each part, where the part of one row has a length of 1 at most."""
        assert self.start.radius is not None, "conflicts() asks for it"
        step, target = STEP / self.start.radius, targets.unit / targets.length
        return {"n": 1.0, "x": step, "xx": step**2, "xy": step * target, "y": target}

    def _share(self, name: str, width: int, targets: Targets) -> tuple[int, Tensor]:
        """b, and the deviation of a share on each number, in units of 2^-b."""
        whole = deviation_of(self.start, targets) / self._scales(targets)[name]
        share = whole / math.sqrt(self.honest)
        least = share / math.sqrt(2) if name == "xx" else share
        bits = max(0, math.ceil(FINE - math.log2(least)))
        deviation = torch.tensor(share * 2.0**bits, dtype=torch.float64)
        if name == "xx":  # products off the diagonal stand once for two
            _, above = _diagonal(width)
            deviation = torch.where(above, deviation / math.sqrt(2), deviation)
        return bits, deviation


def _diagonal(width: int) -> tuple[Tensor, Tensor]:
    """Of an upper triangle's numbers, which are on the diagonal, and which are above it."""
    upper = torch.triu_indices(width, width)
    return upper[0] == upper[1], upper[0] != upper[1]
