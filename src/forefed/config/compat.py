"""Settings that exclude each other: refused before anything loads, with the reason.

A choice says itself what it cannot work with (``Choice.conflicts``); here these are collected, and
what concerns no single choice is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forefed.config.config import SLOTS, Config, chosen
from forefed.core.errors import UserError
from forefed.models.begin import check_adapter
from forefed.models.place import portable_name


@dataclass(frozen=True)
class Exclusion:
    """``broken(config)`` is true where two settings cannot work; ``why`` says the remedy."""

    broken: Callable[[Config], bool]
    why: str


EXCLUSIONS: tuple[Exclusion, ...] = (
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
        lambda c: len({m.kind for m in c.modifiers}) < len(c.modifiers),
        "modifiers: the same one twice keeps one state under one name; give it once",
    ),
    Exclusion(
        lambda c: c.cohort_min > c.cohort,
        "cohort_min is more than the cohort, so every round would be abandoned; lower it",
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
"""What is no single choice's to say; the rest stands beside the choices (``conflicts``)."""


DEPLOYED: tuple[Exclusion, ...] = (
    Exclusion(
        lambda c: c.deadline_s is None,
        "deadline_s: a round between machines needs one, for example deadline_s = 600",
    ),
    Exclusion(
        lambda c: (
            "labels" in type(c.data.task).model_fields and not getattr(c.data.task, "labels", None)
        ),
        "data.task.labels: name the classes, because no site sees those of all the others",
    ),
    Exclusion(
        lambda c: (
            "range" in type(c.data.task).model_fields
            and getattr(c.data.task, "range", None) is None
        ),
        "data.task.range: name the ends of the scale, because no site sees the numbers of all the "
        "others",
    ),
    Exclusion(
        lambda c: c.engine.kind == "auto",
        "engine.kind = 'auto' would measure the server, not the sites; take what 'forefed plan' "
        "recommends at the smallest site",
    ),
    Exclusion(
        lambda c: getattr(c.engine, "emulates", False),
        "engine.emulate = true takes a backward pass's memory; leave it out between machines",
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
        lambda c: c.model.adapter is not None,
        "model.adapter: sites begin with values of the run's seed, and have no such folder; merge "
        "the adapter into its base and give that as model.name",
    ),
    Exclusion(
        lambda c: c.evaluate.clients > 0,
        "evaluate.clients: the sites' test rows do not leave them; set it to 0",
    ),
)
"""For runs whose clients are sites (``partition.kind = "sites"``)."""


def conflicts(config: Config) -> list[str]:
    """What the choices of a configuration say against one another, and the exclusions."""
    reasons = [e.why for e in EXCLUSIONS if e.broken(config)]
    for place in SLOTS:
        for choice in chosen(config, place):
            reasons += choice.conflicts(config)
    return reasons


def check(config: Config, deployed: bool | None = None, brought: bool = False) -> None:
    """Refuse what cannot work together.

    Args:
        deployed: is the run about to start between machines, or as a rehearsal? None: neither.
        brought: do the clients come with their own training (``forefed.hf.simulate``)?

    Raises:
        UserError: every broken pair, one line each.
    """
    sites = config.partition.kind == "sites"
    reasons = conflicts(config)
    reasons += [e.why for e in (DEPLOYED if sites else ()) if e.broken(config)]
    if deployed is not None and deployed != sites:
        reasons.append(
            "partition.kind = 'sites': the rows are at the sites; start this by 'forefed server "
            "run', or choose another partition for a rehearsal on this machine"
            if sites
            else f"partition.kind = '{config.partition.kind}' splits rows of this machine; a run "
            "between machines needs partition.kind = 'sites' and partition.names"
        )
    if config.client.brought and not sites and not brought:
        reasons.append(
            f"client.kind = '{config.client.kind}': a script's own Trainer, and there is none in a "
            "rehearsal of rows; call forefed.hf.simulate in the script, or set partition.kind = "
            "'sites'"
        )
    clients = getattr(config.partition, "clients", None)
    if clients is not None:
        reasons += beyond(config, clients, f"partition.clients = {clients}")
    if config.model.adapter is not None and not reasons:
        check_adapter(config.model.adapter, config.adapter, portable_name(config.model))
    if reasons:
        raise UserError("\n".join(reasons))


def beyond(config: Config, clients: int, who: str = "") -> list[str]:
    """Settings that count more clients than there are.

    Args:
        who: names the setting that says how many there are.
    """
    found: list[str] = []
    there = who or f"{clients} clients"
    if config.cohort > clients:
        found.append(
            f"cohort = {config.cohort} is larger than the population ({there}); lower the cohort, "
            "or change the partition"
        )
    for place, choice in (("start", config.start), ("guard", config.guard)):
        liars = getattr(choice, "f", 0)
        if isinstance(liars, int) and liars and 2 * liars >= clients:
            found.append(
                f"{place}.f = {liars}: nobody can tell who lies where half of the population "
                f"({there}) may; set it below {clients / 2:g}, or to a share such as 0.25"
            )
    between = getattr(config.channel, "aggregators", 0)
    if between > clients:
        found.append(
            f"channel.aggregators = {between} is larger than the population ({there}), so some "
            "would have no clients; lower it"
        )
    return found


def check_population(config: Config, clients: int) -> None:
    """Once it is known how many clients there are.

    Raises:
        UserError: settings that count more of them.
    """
    if found := beyond(config, clients):
        raise UserError("\n".join(found))
