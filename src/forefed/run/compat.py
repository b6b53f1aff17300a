"""Settings that exclude each other: refused before anything loads, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forefed.core.errors import UserError
from forefed.optimisers import Optimiser, Sgd
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
        lambda c: c.engine.shared and not (c.engine.estimates or c.codec.sends_slopes),
        "engine.shared: an exact engine has no directions to share unless codec.kind = 'scalars' "
        "projects its gradient",
    ),
    Exclusion(
        lambda c: c.engine.shared and c.codec.sends_slopes and not _plain_steps(c),
        "engine.shared with codec.kind = 'scalars' averages slopes before anything is rebuilt, "
        "which is exact for plain gradient steps only; set client.optimiser.kind = 'sgd' without "
        "momentum and weight decay and client.proximal = 0, or codec.kind = 'dense'",
    ),
    Exclusion(
        lambda c: c.client.proximal > 0 and c.client.max_steps == 1,
        "client.proximal pulls back to where a client started, and its first step starts there; "
        "allow more steps (client.max_steps), or drop it",
    ),
    Exclusion(
        lambda c: _candidates(c) > 1 and c.memo.kind != "last_update",
        "engine.candidates are compared with the last global update; set memo.kind = 'last_update'",
    ),
    Exclusion(
        lambda c: _candidates(c) == 1 and c.memo.kind == "last_update",
        "memo.kind = 'last_update' is broadcast for engine.candidates; set those above 1, or drop "
        "the memo",
    ),
    Exclusion(
        lambda c: _candidates(c) > 1 and getattr(c.engine, "law", "") != "gauss16",
        "engine.candidates: the bias of the choice is known for Gaussian directions only; set "
        "engine.law = 'gauss16'",
    ),
    Exclusion(
        lambda c: (
            (_candidates(c) > 1 or c.engine.pool is not None)
            and getattr(c.engine, "directions", None) == "all"
        ),
        "engine.directions = 'all' walks along unit vectors, so there is nothing to choose; give a "
        "number, or leave engine.candidates and engine.pool alone",
    ),
    Exclusion(
        lambda c: _candidates(c) > 1 and c.engine.pool is not None,
        "engine.candidates and engine.pool: directions come either from candidates or from a pool",
    ),
    Exclusion(
        lambda c: c.memo.kind == "curvature" and not c.codec.sends_slopes,
        "memo.kind = 'curvature' is made of the clients' slopes; set codec.kind = 'scalars'",
    ),
    Exclusion(
        lambda c: (
            c.memo.kind == "curvature"
            and "all" in (getattr(c.engine, "directions", 1), *_projections(c))
        ),
        "memo.kind = 'curvature' shapes random directions, and 'all' are unit vectors; give "
        "numbers of directions (engine.directions, codec.directions, codec.head_directions)",
    ),
    Exclusion(
        lambda c: c.memo.kind == "curvature" and c.engine.pool is not None,
        "memo.kind = 'curvature' changes the directions, and engine.pool keeps them for the run; "
        "drop one",
    ),
    Exclusion(
        lambda c: c.download.kind == "scalars" and not c.codec.sends_slopes,
        "download.kind = 'scalars': clients repeat what the server did with slopes; set "
        "codec.kind = 'scalars', or download.kind = 'dense'",
    ),
    Exclusion(
        lambda c: c.cohort_min > c.cohort,
        "cohort_min is more than the cohort, so every round would be abandoned; lower it",
    ),
    Exclusion(
        lambda c: c.engine.pool is not None and not (c.engine.estimates or c.codec.sends_slopes),
        "engine.pool: an exact engine has no directions to draw unless codec.kind = 'scalars' "
        "projects its gradient",
    ),
    Exclusion(
        lambda c: c.download.by_sums and not _sums_of_slopes(c),
        "download.kind = 'pool': sums of slopes tell the parameters only with codec.kind = "
        "'scalars', engine.pool set, no 'all' directions, assign.kind = 'everything', plain "
        "gradient steps at the clients (client.optimiser.kind = 'sgd', no momentum, weight decay "
        "or client.proximal) and plain averaging at the server (server.kind = 'sgd', server.lr = "
        "1, server_schedule = 'constant', memo.kind = 'none', collect.kind = 'round'); set these, "
        "or download.kind = 'scalars'",
    ),
    Exclusion(
        lambda c: c.data.test_on == "validation" and c.partition.kind == "sites",
        "data.test_on = 'validation' holds out training rows, and those are at the sites; set "
        "'test'",
    ),
    Exclusion(
        lambda c: sum(c.faults.model_dump().values()) > 1,
        "faults: the probabilities exclude one another and must sum to at most 1",
    ),
)


DEPLOYED: tuple[Exclusion, ...] = (
    Exclusion(
        lambda c: c.deadline_s is None,
        "deadline_s: a round between machines needs one, for example deadline_s = 600",
    ),
    Exclusion(
        lambda c: c.data.task.head == "classification" and not getattr(c.data.task, "labels", ()),
        "data.task.labels: name the classes, because no site sees those of all the others",
    ),
    Exclusion(
        lambda c: c.engine.kind == "auto",
        "engine.kind = 'auto' would measure the server, not the sites; take what 'forefed plan' "
        "recommends at the smallest site",
    ),
    Exclusion(
        lambda c: getattr(c.engine, "rehearses", False),
        "engine.rehearse = true takes a backward pass's memory; leave it out between machines",
    ),
    Exclusion(
        lambda c: any(c.faults.model_dump().values()),
        "faults are simulated ones; sites bring their own, so leave them out",
    ),
    Exclusion(
        lambda c: c.data.limit is not None or c.data.test_on != "test",
        "data.limit and data.test_on are about rows that sites hold; leave them out",
    ),
    Exclusion(
        lambda c: c.evaluate.clients > 0,
        "evaluate.clients: the sites' test rows do not leave them; set it to 0",
    ),
)
"""For runs whose clients are sites (``partition.kind = "sites"``)."""


def _candidates(config: Config) -> int:
    return getattr(config.engine, "candidates", 1)


def _projections(config: Config) -> tuple[int | str | None, ...]:
    """Numbers of directions of the scalar channel."""
    return tuple(getattr(config.codec, n, None) for n in ("directions", "head_directions"))


def _plain_steps(config: Config) -> bool:
    """Are the clients' steps linear in their slopes, and nothing but slopes moves them?"""
    return _plain(config.client.optimiser) and not config.client.proximal


def _plain(optimiser: Optimiser) -> bool:
    return isinstance(optimiser, Sgd) and not (optimiser.momentum or optimiser.weight_decay)


def _sums_of_slopes(config: Config) -> bool:
    """Are the parameters the first ones less a sum of slopes times directions of a pool?"""
    return (
        config.codec.sends_slopes
        and config.engine.pool is not None
        and "all" not in (getattr(config.engine, "directions", 1), *_projections(config))
        and config.assign.kind == "everything"
        and _plain_steps(config)
        and _plain(config.server)
        and config.server.lr == 1
        and config.server.head_lr in (None, 1)
        and config.server_schedule == "constant"
        and (config.memo.kind, config.collect.kind) == ("none", "round")
    )


def check(config: Config, deployed: bool | None = None) -> None:
    """Refuse what cannot work together.

    Args:
        deployed: is the run about to start between machines, or as a rehearsal? None: neither.

    Raises:
        UserError: every broken pair, one line each.
    """
    sites = config.partition.kind == "sites"
    reasons = [e.why for e in (*EXCLUSIONS, *(DEPLOYED if sites else ())) if e.broken(config)]
    if deployed is not None and deployed != sites:
        reasons.append(
            "partition.kind = 'sites': the rows are at the sites; start this by 'forefed server "
            "run', or choose another partition for a rehearsal on this machine"
            if sites
            else f"partition.kind = '{config.partition.kind}' splits rows of this machine; a run "
            "between machines needs partition.kind = 'sites' and partition.names"
        )
    clients = getattr(config.partition, "clients", None)
    if clients is not None and config.cohort > clients:
        reasons.append(
            f"cohort = {config.cohort} is larger than the population "
            f"(partition.clients = {clients}); lower the cohort or declare more clients"
        )
    if reasons:
        raise UserError("\n".join(reasons))
