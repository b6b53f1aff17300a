"""A script's ``Trainer`` as a client's local steps: parameters in, one ``train()``, parameters out.

Only the trainable parameters are touched from outside; loss, data, batches, optimiser, callbacks
and number formats are the script's. What a second ``train()`` of the same Trainer would carry on by
itself, or repeat, is decided here (findings/trainer-again-same-rows.sh shows what that is):

- the optimiser begins anew, or with the moments that the client has kept (``keep_optimiser``);
- Python's, numpy's and torch's generators are seeded from the order's key, and left as they were;
  so rows come in another order in every round, and the same order gives the same steps;
- the schedule of the learning rate is that of one round, or of all of them (``schedule``).
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from forefed.core.errors import UserError, several
from forefed.core.keys import Key
from forefed.core.states import State
from forefed.core.types import Params

Bend = Callable[[Params, Params, int], Params]
"""(gradient, values, step) -> the gradient that the optimiser gets."""


class Own:
    """A Trainer that was looked at: what of it travels, and one round of it.

    Args:
        trainer: of Hugging Face, or of a class that derives from it (TRL's).
        who: how messages call it.

    Raises:
        UserError: nothing is trained, nobody knows how many rows there are, or a second
            ``train()`` would not begin from the values that it is given.
    """

    def __init__(self, trainer: Any, who: str = "the Trainer"):
        check(trainer, who)
        self.trainer, self.who = trainer, who
        self.tensors: dict[str, nn.Parameter] = {
            n: p for n, p in trainer.model.named_parameters() if p.requires_grad
        }
        self.names = {id(p): n for n, p in self.tensors.items()}
        self.given = trainer.optimizer
        """The script's own optimiser; None: its class is named, and it is made anew."""
        self.scheduler = trainer.lr_scheduler
        self.first = [
            None if x is None else copy.deepcopy(x.state_dict())
            for x in (self.given, self.scheduler)
        ]

    @property
    def rows(self) -> int:
        """Of the training data."""
        return len(self.trainer.train_dataset)

    @property
    def params(self) -> Params:
        """The trainable parameters as they travel."""
        return {n: travelling(p).clone() for n, p in self.tensors.items()}

    @property
    def head(self) -> frozenset[str]:
        """What PEFT trains whole beside its adapter (``modules_to_save``)."""
        return frozenset(n for n in self.tensors if ".modules_to_save." in n)

    def differs(self, params: Params) -> str:
        """How these parameters are not those that are trained here; "": they are."""
        here, there = self.tensors.keys(), params.keys()
        if here != there:
            extra, missing = (several(sorted(x), 2, 100) for x in (here - there, there - here))
            told = [f"it trains {extra}" if extra else "", f"not {missing}" if missing else ""]
            return ", and ".join(filter(None, told))
        shapes = [n for n, p in self.tensors.items() if p.shape != params[n].shape]
        if shapes:
            name = shapes[0]
            there_, here_ = tuple(params[name].shape), tuple(self.tensors[name].shape)
            return f"its {name} has the shape {here_}, not {there_}"
        return ""

    def load(self, params: Params) -> None:
        """Put these values into the model."""
        with torch.no_grad():
            for name, x in params.items():
                self.tensors[name].copy_(x)

    def round(
        self,
        params: Params,
        assigned: tuple[str, ...],
        key: Key,
        number: int,
        *,
        kept: State,
        keeps: bool = False,
        max_steps: int | None = None,
        rounds: int | None = None,
        bend: Bend | None = None,
    ) -> tuple[Params, State, Any]:
        """One ``train()``.

        Args:
            params: all trainable parameters' values.
            assigned: which of them are trained.
            key: of this client's round.
            number: of the round, from 1.
            kept: the optimiser's state from the client's last round.
            keeps: return its state.
            max_steps: local steps (None: as the script says).
            rounds: over which the schedule of the learning rate is laid (None: over this one).
            bend: what happens to a gradient before the optimiser steps.

        Returns:
            The assigned parameters' values, the optimiser's state, and the Trainer's own output.
        """
        trainer = self.trainer
        self.load(params)
        began = {n: travelling(self.tensors[n]).clone() for n in assigned}
        told = _Told(self, kept, bend)
        with ExitStack() as stack:
            stack.enter_context(only(self.tensors, assigned))
            stack.enter_context(seeded(key.fold("trainer")))
            stack.enter_context(other_rows(trainer, number))
            if max_steps is not None:
                stack.enter_context(put(trainer.args, "max_steps", max_steps))
            self._fresh()
            if rounds is not None:
                schedule = _laid_over(trainer.create_scheduler, trainer, number, rounds)
                stack.enter_context(put(trainer, "create_scheduler", schedule))
            trainer.add_callback(told)
            stack.callback(trainer.remove_callback, told)
            try:
                output = trainer.train()
                state = self._kept() if keeps else {}
            finally:
                self._fresh()
                # whoever else holds the moments; free_memory would do it, with a collection
                trainer.callback_handler.optimizer = None
                getattr(trainer.accelerator, "_optimizers", []).clear()
        ended = {n: travelling(self.tensors[n]) for n in assigned}
        # where the model's format is narrower, rounding on the way in is no step
        moved = {
            n: x.to(params[n]) + (ended[n] - began[n]).to(x) for n, x in _picked(params, assigned)
        }
        whole = {n: ended[n].clone() if self._wide(n) else moved[n] for n in assigned}
        return whole, state, output

    def _wide(self, name: str) -> bool:
        return self.tensors[name].dtype in (torch.float32, torch.float64)

    def _fresh(self) -> None:
        """The optimiser and a given scheduler as they were before any round."""
        self.trainer.optimizer, self.trainer.lr_scheduler = self.given, self.scheduler
        for thing, state in zip((self.given, self.scheduler), self.first, strict=True):
            if thing is not None:
                thing.load_state_dict(copy.deepcopy(state))

    def _kept(self) -> State:
        """The optimiser's state, "<what>/<parameter>"; numbers as "<what>#/<parameter>".

        Raises:
            UserError: something that is neither a number nor a tensor.
        """
        found: State = {}
        for p, state in plain(self.trainer.optimizer).state.items():
            for what, x in state.items():
                if isinstance(x, Tensor):
                    found[f"{what}/{self.names[id(p)]}"] = x.detach().cpu().clone()
                elif isinstance(x, int | float):
                    number = torch.tensor(x, dtype=torch.float64)
                    found[f"{what}#/{self.names[id(p)]}"] = number
                elif x is not None:
                    kind = type(plain(self.trainer.optimizer)).__name__
                    raise UserError(
                        f"client.keep_optimiser: {kind} keeps a '{what}' that is no tensor; leave "
                        "it false, or take another optimiser"
                    )
        return found

    def restore(self, optimiser: Any, kept: State) -> None:
        """Give an optimiser the state of an earlier round."""
        for place, x in kept.items():
            what, _, name = place.partition("/")
            p = self.tensors[name]
            if what.endswith("#"):
                number = float(x)
                plain(optimiser).state[p][what[:-1]] = (
                    int(number) if number.is_integer() else number
                )
            else:  # a counter of steps stays where optimisers keep it
                moved = x.clone() if x.dim() == 0 else x.clone().to(p.device)
                plain(optimiser).state[p][what] = moved


class _Told(transformers.TrainerCallback):
    """What has to happen inside of ``train()``."""

    def __init__(self, own: Own, kept: State, bend: Bend | None):
        self.own, self.kept, self.bend = own, kept, bend

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        if self.kept:
            self.own.restore(known["optimizer"], self.kept)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        if self.bend is None:
            return
        trained = {n: p for n, p in self.own.tensors.items() if p.grad is not None}
        grad = {n: travelling(p.grad) for n, p in trained.items() if p.grad is not None}
        at = {n: travelling(p) for n, p in trained.items()}
        for name, x in self.bend(grad, at, int(state.global_step)).items():
            there = trained[name].grad
            assert there is not None
            there.copy_(x)


def check(trainer: Any, who: str) -> None:
    """Whether a Trainer can take part; raises UserError."""
    if not isinstance(trainer, transformers.Trainer):
        raise UserError(
            f"{who}: {type(trainer).__name__} is no Trainer of transformers (nor derived from it, "
            "as TRL's are)"
        )
    args = trainer.args
    if trainer.model_init is not None:
        raise UserError(
            f"{who}: model_init makes a new model in every train(), so no round would begin from "
            "the others' parameters; give the Trainer a model"
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or args.world_size > 1:
        raise UserError(
            f"{who}: its parameters are spread over several processes (DeepSpeed, FSDP, torchrun); "
            "a client is one process"
        )
    if args.fp16 and args.device.type == "cpu":
        raise UserError(
            f"{who}: fp16 = True, and it computes on the CPU, where transformers takes that in "
            "silence; drop it, or set bf16 = True with use_cpu = True"
        )
    if trainer.train_dataset is None:
        raise UserError(f"{who}: it has no train_dataset; give it the rows of this client")
    try:
        len(trainer.train_dataset)
    except (TypeError, NotImplementedError):
        raise UserError(
            f"{who}: its data are streamed and have no length, so nobody knows what its update "
            "weighs; give a data set with a length, or give the streamed one a __len__"
        ) from None
    if not any(p.requires_grad for p in trainer.model.parameters()):
        raise UserError(
            f"{who}: nothing in its model is trainable (requires_grad); wrap it by PEFT's "
            "get_peft_model, or free the parameters that are to be trained"
        )


def travelling(x: Tensor) -> Tensor:
    """As it travels: on the CPU, in float32 or wider."""
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.detach().to("cpu", wide)


def plain(optimiser: Any) -> Any:
    """An optimiser without accelerate's wrapper."""
    return getattr(optimiser, "optimizer", optimiser)


def _picked(params: Params, names: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    return [(n, params[n]) for n in names]


def _laid_over(create: Callable[..., Any], trainer: Any, number: int, rounds: int) -> Any:
    """A Trainer's ``create_scheduler`` for the steps of all rounds, at this one's first step."""

    def made(num_training_steps: int, *more: Any, **named: Any) -> Any:
        scheduler = create(num_training_steps * rounds, *more, **named)
        with warnings.catch_warnings():
            # it asks to be stepped after the optimiser, whose steps were in earlier rounds
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(num_training_steps * (number - 1)):
                scheduler.step()
        return scheduler

    return made


@contextmanager
def put(thing: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute for a while."""
    own = name in vars(thing)
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if own:
            setattr(thing, name, before)
        else:
            delattr(thing, name)


@contextmanager
def only(tensors: Mapping[str, nn.Parameter], assigned: tuple[str, ...]) -> Iterator[None]:
    """Of these parameters only the assigned ones have gradients."""
    for name, p in tensors.items():
        p.requires_grad_(name in assigned)
    try:
        yield
    finally:
        for p in tensors.values():
            p.requires_grad_(True)
            p.grad = None


@contextmanager
def other_rows(trainer: Any, number: int) -> Iterator[None]:
    """A script's ``data_seed`` orders every round's rows alike; here it is that and the round."""
    about = getattr(trainer.accelerator, "dataloader_config", None)
    seed = getattr(about, "data_seed", None)
    if seed is None:
        yield
        return
    with put(about, "data_seed", seed + number):
        yield


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """The generators that a Trainer draws from, seeded for a while.

    They are global ones, which nothing else here uses; the caller's are as before afterwards.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 (a script's own)
    with torch.random.fork_rng(devices=devices):
        transformers.set_seed(key.value % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 (a script's own)
