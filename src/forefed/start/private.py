"""Noise on the sums that a head is solved from: one release before round 1.

Source: sufficient statistics perturbation for linear models (Vu and Slavkovic 2009; Sheffet, arXiv
1507.00056), by the Gaussian mechanism. One example adds, with |x| <= R and |y| <= Y (a class: 1; C
labels: sqrt(C); a number: 2),

    (y / Y,  y x^T / (Y R),  x x^T / R^2),    of length sqrt(3) at most

and, where how many rows there are does not follow from their classes, 1 and x / R besides: sqrt(5).
(Off-diagonal products count twice in a symmetric matrix, and stand there once with sqrt(2).) So the
noise's deviation is sigma sqrt(3), or sqrt(5), on each. Of a client at most ``max_rows`` rows count
where whole clients are hidden.

Who adds it says ``start.noise_by``: the server, or every client its share (start/shares.py).

What is made of the noisy sums costs nothing: counts are at least 1, and the spread of the features
is made positive again by adding what the noise alone would reach, sqrt(2 D) times its deviation
(the edge of a Gaussian symmetric matrix), and cutting what is negative still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.keys import Secret
from forefed.core.types import Params
from forefed.privacy import Release, noise_for, noised
from forefed.start.sums import STEP, Sums
from forefed.start.targets import TARGETS, Classes, Targets

if TYPE_CHECKING:
    from forefed.start.closed_form import ClosedForm

MODELS = "everyone who sees the models, the server excepted"


def within(x_BD: Tensor, radius: float) -> Tensor:
    """Features of length ``radius`` at most, also after they are rounded to whole steps."""
    x_BD = x_BD.double()
    lengths_B = torch.linalg.vector_norm(x_BD, dim=1, keepdim=True)
    scaled = x_BD * (radius / lengths_B.clamp_min(1e-300)).clamp(max=1.0)
    finite = torch.isfinite(x_BD).all(1, keepdim=True)
    return (torch.where(finite, scaled, 0.0) / STEP).trunc() * STEP


def sigma_of(start: ClosedForm) -> float:
    """The noise multiplier of a private start."""
    if start.target_epsilon is not None:
        return noise_for(start.target_epsilon, start.delta, 1.0, 1)
    return start.noise_multiplier or 0.0


def planned(start: ClosedForm) -> Release:
    """What a private start lets out."""
    sigma = sigma_of(start)
    if start.noise_by == "server":
        return Release(unit=start.unit, sigma=sigma, adversary=MODELS)
    adversary = "the server and everyone who sees the models, the other clients excepted"
    if start.colluding:
        some = "any other client" if start.colluding == 1 else f"any {start.colluding} others"
        adversary = f"the server together with {some}, and everyone who sees the models"
    return Release(
        unit=start.unit, sigma=sigma, adversary=adversary, mechanism="distributed Gaussian"
    )


def private_sums(
    start: ClosedForm, targets: Targets, total: Sums, secret: Secret
) -> tuple[Sums, Release]:
    """Sums with noise, such as rows could have, and what their release is."""
    radius, release = _radius(start), planned(start)
    deviation = deviation_of(start, targets)
    x, xy, xx = total.real()
    target = targets.unit / targets.length
    above = torch.triu(torch.ones_like(xx), 1).bool()
    apart = {
        "y": total.y.double() * target,
        "xy": xy * target / radius,
        "xx": torch.cat([xx.diagonal(), math.sqrt(2) * xx[above]]) / radius**2,
    }
    if not targets.partition:
        apart |= {"n": total.n.double(), "x": x / radius}
    tag = tag_of(apart, secret)
    if deviation:
        apart = noised(apart, deviation, secret.fold("start"))
    return possible(start, targets, apart, deviation), replace(release, tag=tag)


def tag_of(apart: Params, secret: Secret) -> str:
    """Names the sums that are released."""
    return secret.fold("release", "start", trees.digest(apart)).bytes[:8].hex()


def deviation_of(start: ClosedForm, targets: Targets) -> float:
    """Of the noise on every number of the sums, each part of which is scaled to a length of 1."""
    rows = start.max_rows if start.unit == "client" else 1
    return sigma_of(start) * math.sqrt(targets.blocks) * (rows or 1)


def _radius(start: ClosedForm) -> float:
    assert start.radius is not None, "conflicts() asks for it"
    return start.radius


def possible(start: ClosedForm, targets: Targets, apart: Params, deviation: float) -> Sums:
    """Sums such as rows could have, near these noisy ones.

    Args:
        apart: as above, each part scaled to a length of 1, with noise of this deviation.
    """
    radius, width = _radius(start), apart["xy"].shape[1]
    target = targets.unit / targets.length
    n, y = targets.possible(apart.get("n"), (apart["y"] / target).round())
    whole_xy = (apart["xy"] * radius / target / STEP).round().to(torch.int64)
    # x as it will stand there, so that products fit it
    whole_x = whole_xy.sum(0)
    if not targets.partition:
        whole_x = (apart["x"] * radius / STEP).round().to(torch.int64)
    x = whole_x.double() * STEP
    xx = torch.diag(apart["xx"][:width]) * radius**2
    above = torch.triu(torch.ones_like(xx), 1).bool()
    xx[above] = apart["xx"][width:] * radius**2 / math.sqrt(2)
    xx = xx + xx.triu(1).T
    spread = xx - torch.outer(x, x) / n
    edge = math.sqrt(2 * width) * deviation * radius**2
    values, vectors = torch.linalg.eigh(spread)
    # beyond zero by a hundred steps: sums are rounded to whole ones
    values = (values + edge).clamp_min(100 * width * STEP**2)
    xx = vectors @ torch.diag(values) @ vectors.T + torch.outer(x, x) / n
    upper = torch.triu_indices(width, width)
    products = (xx[upper[0], upper[1]] / STEP**2).round().to(torch.int64)
    noisy = Sums(torch.tensor(n), y.to(torch.int64), whole_x, whole_xy, products)
    noisy.check()
    targets.check(noisy)
    return noisy


def troubles(start: ClosedForm, config: Any) -> Iterator[str]:
    """What a private start cannot work with, each as the rest of a sentence."""
    hidden = {m.unit for m in config.modifiers if m.private}
    if start.noise_multiplier is not None and start.target_epsilon is not None:
        yield "noise_multiplier and target_epsilon are two ways to say one thing; give one"
    if start.radius is None:
        yield "noise needs a bound on the features; set start.radius (about their usual length)"
    if start.unit == "client" and start.max_rows is None:
        yield "unit = 'client' needs a bound on a client's rows; set start.max_rows"
    if start.f not in ("auto", 0):
        yield "who is left out would tell of rows without noise; leave start.f out"
    targets = TARGETS.get(config.data.task.head, Classes)
    if start.solver not in targets.solvers or start.regularisation == "held_out":
        yield (
            "held-out rows choose the head, and their losses are releases that nobody accounts "
            f"for; set start.solver = '{targets.solvers[0]}' and start.regularisation = 0.1"
        )
    if getattr(config.data.task, "range", ()) is None:
        yield (
            "the ends of the scale are numbers of single rows, and no noise hides them; set "
            "data.task.range"
        )
    if start.min_count > 1:
        yield "min_count lets one row decide about others; set start.min_count = 1"
    yield from _troubles_of_shares(start, config)
    if hidden and hidden != {start.unit}:
        yield f"the modifiers hide {' and '.join(sorted(hidden))}s; set start.unit to the same"
    if config.rounds and not hidden:
        yield (
            "the rounds after it have no noise, so the run as a whole hides nothing; set rounds = "
            "0, or add the modifier 'dp_example' or 'dp_client'"
        )
    if config.evaluate.clients:
        yield "evaluate.clients tests on the clients' own rows; set it to 0"
    if config.guard.kind not in ("auto", "none"):
        yield "losses of held-out rows are releases that nobody accounts for; set guard = 'none'"


def _troubles_of_shares(start: ClosedForm, config: Any) -> Iterator[str]:
    if start.noise_by == "server":
        return
    channel, least = config.channel, config.channel.least
    if not channel.hides:
        yield (
            "noise_by = 'clients' gives every client a share of the noise, too little for its sums "
            "alone; set channel.kind = 'secure_sum', or noise_by = 'server'"
        )
    elif start.colluding >= least:
        yield (
            f"colluding = {start.colluding} of at least {least} clients leave nobody whose noise "
            "counts; lower it, or raise channel.min_group"
        )
    elif not channel.bears(start.colluding):
        yield (
            f"colluding = {start.colluding} are more than channel.kind = '{channel.kind}' bears "
            f"among {least} clients; lower it, or raise channel.min_group or channel.colluding"
        )
