"""Training scripts with a ``Trainer`` of Hugging Face (or TRL) as clients of a federation.

    forefed.hf.simulate([trainer_a, trainer_b], rounds=3)    # all of them in this process
    forefed.hf.federate(trainer)                             # as a site: docs/trainer.md

The script's loss, data, batches, optimiser, callbacks and number formats stay; one round is one
``trainer.train()``. What travels are the parameters that it trains, through the orders, codecs,
channels and modifiers of every other client.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from forefed.config.compat import check
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Secret
from forefed.core.types import Lost, Reply, Unit
from forefed.federation.report import RoundReport
from forefed.federation.star import RunState
from forefed.hf.own import Own
from forefed.hf.site import federate
from forefed.hf.steps import share_of, steps_of
from forefed.run.assemble import assemble
from forefed.run.simulate import OwnModel, Simulation, configured, units_of, went

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["federate", "simulate"]


def simulate(
    trainers: Sequence[Trainer],
    *,
    strategy: str = "fedavg",
    rounds: int = 10,
    cohort: int | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    keep_optimiser: bool = False,
    schedule: Literal["round", "run"] = "round",
    units: Sequence[Unit | Sequence[str]] | None = None,
    head: Collection[str] | None = None,
    state: RunState | None = None,
    on_round: Callable[[RunState, RoundReport], None] | None = None,
    on_outcome: Callable[[Reply | Lost], None] | None = None,
    **settings: Any,
) -> Simulation:
    """Run a federation whose clients are Trainers, in this process.

    They train the same parameters, by name and shape, over the same frozen model. They may share
    one model object: every round puts the values in with which it begins. At the end each model
    holds the common parameters (and what its client keeps to itself), so that
    ``trainer.evaluate()`` and ``trainer.save_model()`` are about the result.

    Args:
        trainers: one for each client; rounds begin from the first one's values.
        strategy: whose settings to start from (``forefed list strategies``).
        rounds: how many; a client's part of each is one ``train()``.
        cohort: clients per round (None: all).
        seed: draws cohorts, and seeds every ``train()``.
        max_steps: of each ``train()`` (None: as each script says).
        keep_optimiser: keep the optimiser's moments at the client between its rounds; else every
            round begins with a new optimiser.
        schedule: the learning rate's over each round anew, or over the steps of the whole run.
        units: what is trained together (None: every parameter by itself).
        head: the head's parameters (None: those of PEFT's ``modules_to_save``).
        state: go on from that of an earlier simulation. What clients keep is not in it.
        on_round: called after every round; it may raise to stop.
        on_outcome: called for every answer.
        settings: any other section or setting of the configuration (``codec="quantised"``).

    Returns:
        Final parameters, the state to go on from, and every round's report.

    Raises:
        UserError: settings that cannot work with steps that are a script's, a Trainer that cannot
            take part (``hf.own.check``), or two that do not train the same.
    """
    if not trainers:
        raise UserError("simulate needs at least one Trainer")
    if "client" in settings:
        raise UserError(
            "client: the scripts have their own steps; of its settings max_steps, keep_optimiser "
            "and schedule are arguments of simulate"
        )
    client = {"kind": "trainer", "max_steps": max_steps}
    client |= {"keep_optimiser": keep_optimiser, "schedule": schedule}
    about = {"strategy": strategy, "rounds": rounds, "seed": seed, "client": client}
    config = configured(len(trainers), cohort, {**about, **settings})
    check(config, brought=True)
    owns = [Own(trainer, f"trainer {i}") for i, trainer in enumerate(trainers)]
    first = owns[0].params
    for own in owns[1:]:
        if unlike := own.differs(first):
            raise UserError(
                f"{own.who} does not train what trainer 0 does: {unlike}; give all of them the "
                "same model and the same adapter"
            )
    of_head = owns[0].head if head is None else frozenset(head)
    model = OwnModel(first, tuple(units_of(first, units, of_head)), of_head)
    steps = [steps_of(config, model, own) for own in owns]
    star, _ = assemble(
        config,
        model,
        lambda client: steps[client],
        len(owns),
        lambda client: share_of(owns[client]),
        Secret.rehearsed(config.seed),
        measure=False,
    )
    result = went(config, star, state or RunState(0, first), on_round, on_outcome)
    for i, own in enumerate(owns):
        own.load(trees.pick(result.own(i), own.tensors))
    return result
