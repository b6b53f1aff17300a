"""Settings that exclude each other: refused before anything loads, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forefed.core.errors import UserError
from forefed.run.config import Config


@dataclass(frozen=True)
class Exclusion:
    """``broken(config)`` is true where two settings cannot work; ``why`` says the remedy."""

    broken: Callable[[Config], bool]
    why: str


EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        lambda c: c.codec.sends_slopes and c.client.keep_optimiser,
        "client.keep_optimiser: the server cannot replay moments that stay at the client; "
        "use codec.kind = 'dense', or drop the moments",
    ),
    Exclusion(
        lambda c: c.codec.sends_slopes and bool(c.transforms),
        "transforms: under codec.kind = 'scalars' the client's slopes travel, not its update, so "
        "there is nothing to transform; use codec.kind = 'dense'",
    ),
    Exclusion(
        lambda c: c.engine.estimates and getattr(c.codec, "directions", None) is not None,
        "codec.directions is for exact engines; an estimating engine sends the slopes of its own "
        "engine.directions",
    ),
    Exclusion(
        lambda c: c.engine.kind == "exact_head" and c.adapter.kind != "head",
        "engine.kind = 'exact_head' trains the head alone; set adapter.kind = 'head', or "
        "another engine",
    ),
    Exclusion(
        lambda c: c.data.task.head == "causal_lm" and c.adapter.kind == "head",
        "adapter.kind = 'head': a language model has no classification head to train; "
        "set adapter.kind = 'lora' or 'tinylora'",
    ),
    Exclusion(
        lambda c: (
            getattr(c.engine, "head", "exact") == "perturbed"
            and c.adapter.kind == "head"
            and getattr(c.engine, "directions", None) == "all"
        ),
        "engine.directions = 'all' over a perturbed head costs a tangent per element of the head; "
        "set engine.head = 'exact', which is the same gradient for one pass",
    ),
    Exclusion(
        lambda c: bool(c.memory) and c.engine.kind != "auto",
        "memory: budgets choose the engine, so engine.kind must be 'auto'; what a chosen engine "
        "needs says 'forefed plan'",
    ),
    Exclusion(
        lambda c: bool(c.memory) and abs(sum(b.share for b in c.memory) - 1) > 1e-6,
        "memory: the shares of the groups must sum to 1",
    ),
    Exclusion(
        lambda c: (
            getattr(c.engine, "independent", 1) > 1
            and getattr(c.engine, "directions", None) == "all"
        ),
        "engine.independent: the unit vectors of engine.directions = 'all' give the exact gradient "
        "already; leave it at 1",
    ),
    Exclusion(
        lambda c: sum(c.faults.model_dump().values()) > 1,
        "faults: the probabilities exclude one another and must sum to at most 1",
    ),
)


def check(config: Config) -> None:
    """Refuse what cannot work together.

    Raises:
        UserError: every broken pair, one line each.
    """
    reasons = [e.why for e in EXCLUSIONS if e.broken(config)]
    clients = getattr(config.partition, "clients", None)
    if clients is not None and config.cohort > clients:
        reasons.append(
            f"cohort = {config.cohort} is larger than the population "
            f"(partition.clients = {clients}); lower the cohort or declare more clients"
        )
    if reasons:
        raise UserError("\n".join(reasons))
