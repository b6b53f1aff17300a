"""A client of a run whose local steps are a script's own ``Trainer``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import cast

import numpy as np
from torch import Tensor

from forefed.config.config import Config
from forefed.core import trees
from forefed.core.states import State, States, keep
from forefed.core.types import Batch, ClientContext, Order, Params
from forefed.data.examples import ClientData, Examples
from forefed.hf.own import Own
from forefed.local import TaskView
from forefed.local.brought import Brought
from forefed.local.training import OPTIMIZER, Trainer, Walked, bent
from forefed.run.assemble import Model, make_trainer
from forefed.run.simulate import TensorRows

AGAIN = ("gradient", "activation")
"""What transformers calls computing a block's activations again, in former and present versions."""


@dataclass(frozen=True)
class Steps(Trainer):
    """A client's round by a script's Trainer. All else of a client is as of any other: what it is
    assigned and keeps to itself, modifiers of steps and updates, codec and channel."""

    own: Own = field(kw_only=True)

    def walk(self, order: Order, data: ClientData, states: States, ctx: ClientContext) -> Walked:
        assert isinstance(self.settings, Brought)
        if not len(data.train):
            nothing = {"loss": math.nan, "steps": 0.0, "forwards": 0.0}
            return Walked(trees.pick(order.params, order.assigned), states, 0, nothing)
        bending = [m for m in self.modifiers if m.bends_steps]
        new: dict[str, State] = dict(states)

        def bend(grad: Params, at: Params, step: int) -> Params:
            nonlocal new
            if not trees.all_finite(grad):
                return grad
            grad, new = bent(bending, ctx, at, new, grad, step)
            return grad

        params, moments, output = self.own.round(
            order.params,
            order.assigned,
            order.key,
            order.round,
            kept=states.get(OPTIMIZER, {}),
            keeps=self.settings.keep_optimiser,
            max_steps=self.settings.max_steps,
            rounds=self.rounds if self.settings.schedule == "run" else None,
            bend=bend if bending else None,
        )
        state, args = self.own.trainer.state, self.own.trainer.args
        steps = int(output.global_step)
        size = (state.train_batch_size or args.train_batch_size) * args.gradient_accumulation_steps
        # the last batch of an epoch may be smaller
        passed = min(steps * size, math.ceil(state.epoch or 0) * len(data.train))
        again = any(getattr(args, f"{what}_checkpointing", False) for what in AGAIN)
        passes = 3 if again else 2
        metrics = {
            "loss": float(output.training_loss),
            "steps": float(steps),
            "forwards": float(passes * passed),
        }
        seen = min(len(data.train), passed)
        return Walked(params, keep(new, OPTIMIZER, moments), seen, metrics)


def share_of(own: Own) -> ClientData:
    """A Trainer's rows as the loop knows of them: how many there are."""
    rows = cast(Examples, TensorRows({}, own.rows))
    return ClientData(rows, np.arange(own.rows), np.zeros(0, dtype=np.int64))


def steps_of(config: Config, model: Model, own: Own) -> Steps:
    """A client's half of a run over this model."""
    view = TaskView(no_loss, no_loss, model.head, None, model.units, model.params)
    plain = make_trainer(config, view)
    about = {f.name: getattr(plain, f.name) for f in fields(plain)}
    return Steps(**about, own=own)


class _NoLoss:
    """Stands where a client of ours has its loss."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        raise AssertionError("the loss is the script's")

    def weight(self, batch: Batch) -> int:
        raise AssertionError("the loss is the script's")


no_loss = _NoLoss()
