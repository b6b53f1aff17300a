"""How an update stands in the words of a sum.

The words of a round are the same tensors of every client of the group, sorted by name: changes of
the assigned parameters, or slopes [max_steps, K] by group (a client with fewer steps has zeros
there, as where slopes are averaged). Examples and metrics stand in 64-bit words beside them, so
nothing of a client travels by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from forefed.channel.channel import Group, Numbers, Shapes, Sum, Upload
from forefed.channel.fixed_point import Words
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.types import Params, Update

if TYPE_CHECKING:
    from forefed.channel.summing import Summing

SUMMED = ("steps", "skipped", "clamped", "forwards")
"""Metrics that are added up; others (a peak is no sum) do not travel."""
ABOUT = ("clients", "examples", *SUMMED, "loss", "loss_examples", "clipped", "capped")
"""Numbers beside the tensors. ``loss``: times examples; ``clipped``, ``capped``: clients that were
scaled down to the clip, or had more examples than count."""
UNIT = 2.0**-20
"""Of the numbers beside the tensors, and of sums that are no whole numbers."""
LARGEST = 2.0**28
"""Of such a number in absolute value: sums of up to 2^15 of them fit 64 bits."""


def empty(shapes: Shapes, channel: Summing) -> Words:
    """Words of nothing."""
    return Words.zero(sum(map(math.prod, shapes.values())), len(ABOUT), channel.bits)


def to_words(update: Update, shapes: Shapes, channel: Summing, clients: int) -> Words:
    """What a client adds to a sum of so many.

    Raises:
        ProtocolError: a contribution that is not finite; more clients than the words have room for.
    """
    slopes = update.slopes is not None
    point = channel.point("projections" if slopes else "delta", clients)
    if not point.fits(clients):
        raise ProtocolError(f"a sum of {clients} clients does not fit words of {point.bits} bits")
    silent = not update.metrics  # a client that may say nothing of itself, as under privacy noise
    weight = min(update.n_examples, channel.max_examples)
    words = empty(shapes, channel)
    clipped = False
    if weight:
        held = _padded(update.slopes, shapes) if update.slopes is not None else update.grad or {}
        flat = np.concatenate([held[n].detach().cpu().double().numpy().ravel() for n in shapes])
        values, clipped = point.encode(flat, weight, inward=silent)
        words = Words(values, words.about)
    loss = update.metrics.get("loss", math.nan)
    there = weight > 0 and math.isfinite(loss)
    numbers = {
        "clients": 1.0,
        "examples": float(weight),
        **{name: update.metrics.get(name, 0.0) for name in SUMMED},
        "loss": loss * weight if there else 0.0,
        "loss_examples": float(weight) if there else 0.0,
        "clipped": float(clipped and not silent),
        "capped": float(update.n_examples > weight and not silent),
    }
    about = whole(np.array([numbers[name] for name in ABOUT]))
    return Words(words.values, about.view(np.uint64))


def words_of(
    upload: Upload | None, channel: Summing, clients: int, secret: Callable[[], Secret]
) -> Words:
    """What a client's update, or its answer to a question, adds to a sum of so many.

    Args:
        secret: the client's own, for noise that it adds.

    Raises:
        ProtocolError: as ``to_words``, or there is neither.
    """
    if upload is not None and upload.update is not None and upload.shapes is not None:
        return to_words(upload.update, upload.shapes(), channel, clients)
    if upload is not None and upload.whole is not None:
        return Words(Words.zero(0, 0, channel.bits).values, upload.whole(secret()).view(np.uint64))
    raise ProtocolError("words are asked for, and nothing of which they could be")


def of_words(
    total: Words, shapes: Shapes, channel: Summing, clients: int, payload: str
) -> tuple[Params, dict[str, float]]:
    """The weighted mean of a group's updates, and their numbers (``ABOUT``) together.

    Args:
        clients: for how many the words had room.
    """
    about = dict(zip(ABOUT, (total.about.view(np.int64) * UNIT).tolist(), strict=True))
    point = channel.point(payload, clients)
    flat = point.decode(total.values) / max(about["examples"], 1.0)
    loss, terms = about.pop("loss"), about.pop("loss_examples")
    return of_flat(torch.from_numpy(flat).float(), shapes), {
        **about,
        "loss": loss / terms if terms else math.nan,
    }


def nothing(payload: str, shapes: Shapes, channel: Summing) -> Words:
    """A sum before anybody is in it."""
    if payload == "whole":  # whole numbers stand where counts do
        return Words.zero(0, sum(map(math.prod, shapes.values())), channel.bits)
    return empty(shapes, channel)


def sum_of(
    total: Words, asked: Group, heard: tuple[int, ...], room: int, channel: Summing, payload: str
) -> Sum:
    """What the server learns of a group.

    Args:
        heard: who is in the sum.
        room: for how many clients the words had room.
    """
    if payload == "whole":
        flat = torch.from_numpy(total.about.view(np.int64).copy())
        return Sum(asked.clients, heard, of_flat(flat, asked.shapes))
    return Sum(asked.clients, heard, *of_words(total, asked.shapes, channel, room, payload))


def of_flat(flat: torch.Tensor, shapes: Shapes) -> Params:
    """Tensors of these shapes, one after the other in ``flat``."""
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {
        name: x.reshape(shape).clone()
        for (name, shape), x in zip(shapes.items(), parts, strict=True)
    }


def whole(x: NDArray[np.float64]) -> Numbers:
    """Numbers in units of ``UNIT``; what is no number, or beyond the largest, as the largest."""
    bounded = np.nan_to_num(x, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)
    return np.rint(np.clip(bounded, -LARGEST, LARGEST) / UNIT).astype(np.int64)


def _padded(slopes: Mapping[str, torch.Tensor], shapes: Shapes) -> Params:
    """Slopes [steps, K] of every group with zeros for steps that were not taken, or whose slopes
    were not finite.

    Raises:
        ProtocolError: more steps, or another number of slopes.
    """
    held: Params = {}
    for name, shape in shapes.items():
        x = slopes[name]
        whole_steps = torch.zeros(shape, dtype=torch.float64)
        if len(x):
            if len(x) > shape[0] or x.shape[1] != shape[1]:
                raise ProtocolError(f"{tuple(x.shape)} slopes of '{name}', at most {shape}")
            finite = torch.isfinite(x).all(1, keepdim=True)
            whole_steps[: len(x)] = torch.where(finite, x, 0.0).double()
        held[name] = whole_steps
    return held
