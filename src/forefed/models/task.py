"""A model with an adapter as a ``Task``: a pure loss function of its trainable tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from forefed.core.keys import Key
from forefed.core.lora import is_a, is_b, is_folded
from forefed.core.types import Batch, Each, InTwo, Locally, Params, Unit
from forefed.data.examples import Examples, Indices
from forefed.data.tasks import Head
from forefed.models.adapters import Adapter, LoraHyper, LoraSb
from forefed.models.attach import attach, head_modules
from forefed.models.bag_of_words import Words
from forefed.models.blocks import Blocks
from forefed.models.functional import Call, CurrentCall, Functional
from forefed.models.generate import continuations
from forefed.models.local_losses import local_losses
from forefed.models.objectives import NextToken, Objective, Sums, merge, objective_of
from forefed.models.pages import Pages
from forefed.models.quantised import matrices_of
from forefed.models.quantised import quantise as quantise_model
from forefed.models.recompute import recomputing
from forefed.models.structured import Structured
from forefed.models.tail import Tail, find_tail
from forefed.models.units import make_units

Around = Callable[[Params, Batch], AbstractContextManager[None]]
"""What is open while a batch is computed."""


def nothing_around(params: Params, batch: Batch) -> AbstractContextManager[None]:
    """Nothing is open."""
    return nullcontext()


@dataclass(frozen=True)
class Logits:
    """Logits as a pure function of the trainable tensors and a batch."""

    model: Any
    functional: Functional
    names: frozenset[str]
    device: torch.device
    uses_types: bool
    objective: Objective
    tail: Tail | None = None
    """What a language model does after its body, where it can be told apart."""

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """[B, ...], as the objective has them; every trainable tensor must be given."""
        return self.functional.run(self.call_of(params, batch), self.of_call, batch)

    def call_of(self, params: Params, batch: Batch) -> Call:
        assert params.keys() == self.names, set(params) ^ set(self.names)
        there = {name: x.to(self.device) for name, x in params.items()}
        return Call(there, batch.dropout, batch.first_row)

    def of_call(self, batch: Batch) -> Tensor:
        """Logits of the tensors that ``functional`` has swapped in."""
        if batch.choices is None:
            return self.objective.logits(self.model(**self.inputs(batch)))
        inputs = self.inputs(batch)
        last_B = inputs["attention_mask"].sum(1) - 1
        where_B = last_B + torch.arange(len(last_B), device=last_B.device) * batch.length
        if self.tail is None:
            logits_BV = self.objective.logits(self.model(**inputs)).flatten(0, 1)[where_B]
        else:
            logits_BV = self.tail.logits(self.tail.hidden(**inputs).flatten(0, 1)[where_B])
        return logits_BV[:, torch.tensor(batch.choices, device=last_B.device)]

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The model's keyword arguments, on its device."""
        return {
            name: x.to(self.device)
            for name, x in batch.inputs.items()
            if name != "token_type_ids" or self.uses_types
        }


@dataclass(frozen=True)
class ModelLoss:
    """Mean cross-entropy of a batch, computed in float32 or wider (a ``core.types.LossFn``)."""

    forward: Logits
    blocks: tuple[nn.Module, ...] = ()
    """The blocks that run again in the backward pass; none: plain backprop."""
    structured: Structured | None = None
    """How they run again; None: with everything kept that autograd keeps."""
    tail: Tail | None = None
    """With it, a language model's logits are computed for a few tokens at a time."""

    @property
    def chunked(self) -> bool:
        return self.tail is not None

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.sum(params, batch) / max(self.weight(batch), 1)

    def weight(self, batch: Batch) -> int:
        """Terms of the mean: examples, or predicted tokens."""
        return self.forward.objective.weight(batch)

    @property
    def each(self) -> Each | None:
        """The loss of every example, in one pass; None where it is computed in pieces."""
        return None if self.blocks or self.tail is not None else self._each

    def _each(self, params: Params, batch: Batch) -> Tensor:
        def losses(batch: Batch) -> Tensor:
            return self.forward.objective.losses(self.forward.of_call(batch), batch)

        return self.forward.functional.run(self.forward.call_of(params, batch), losses, batch)

    @property
    def in_two(self) -> InTwo | None:
        """Logits, and the losses from them; None where a text has more than one vector of them."""
        objective = self.forward.objective
        whole = objective.pooled and not self.blocks and self.tail is None
        return InTwo(self.forward, objective.losses) if whole else None

    @property
    def locally(self) -> Locally | None:
        """The losses of the model's parts; None where its blocks are not known."""
        return partial(local_losses, self) if self.blocks else None

    def sum(self, params: Params, batch: Batch) -> Tensor:
        """Summed cross-entropy in nats."""
        call = self.forward.call_of(params, batch)
        functional = self.forward.functional
        if not self.blocks:
            return functional.run(call, self.of_call, batch)
        again = (
            partial(recomputing, functional) if self.structured is None else self.structured.open
        )
        with again(call, self.blocks):
            return functional.run(call, self.of_call, batch)

    def of_call(self, batch: Batch) -> Tensor:
        """The sum of the tensors that ``forward.functional`` has swapped in."""
        if self.tail is None:
            return self.forward.objective.loss_sum(self.forward.of_call(batch), batch)
        hidden_BSH = self.tail.hidden(**self.forward.inputs(batch))
        return self.tail.loss_sum(hidden_BSH, batch.labels)


@dataclass(frozen=True)
class Task:
    """What is trained, as the rest of the house sees it. Built once, never changed.

    The body is always in eval mode: dropout of the frozen model is off, the adapter's is on exactly
    when a batch carries a dropout key. Attention is torch's fused one where the model has it.
    """

    params: Params
    """The trainable tensors' first values by their PEFT names, in the order of ``units``; then the
    dense parts beside adapted matrices, where the aggregator has some (``adapter.fold``)."""
    units: tuple[Unit, ...]
    head: frozenset[str]
    base_name: str
    """Name of the base model that other people can load: a hub id, or a folder's own name."""
    adapter: Adapter
    logits: Logits
    loss: ModelLoss
    loss_recomputed: ModelLoss
    loss_structured: ModelLoss
    model: Any = field(repr=False)
    """The PEFT model; its stored tensors are the first values and stay so."""
    notes: tuple[str, ...] = ()
    """Sentences about the model that a person should read before training."""

    @property
    def objective(self) -> Objective:
        return self.logits.objective

    @property
    def causal(self) -> bool:
        """Is it a language model?"""
        return isinstance(self.objective, NextToken)

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.objective.label_names

    @property
    def n_labels(self) -> int:
        """Classes; 0 where none are learned."""
        return len(self.label_names)

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def evaluate(
        self,
        params: Params,
        examples: Examples,
        indices: Sequence[int] | Indices,
        batch_size: int,
        around: Around = nothing_around,
        words: Words | None = None,
        points: bool = False,
    ) -> Sums:
        """Sums over the named examples, so that several parts can be added up.

        Args:
            around: open while a batch is computed (a cached prefix).
            words: what the texts' words add to the logits.
            points: keep every example's (``Objective.points``), in an order that depends on the
                examples alone.

        Returns:
            ``loss_sum`` over ``weight`` terms (examples, or predicted tokens), ``n`` examples, and
            what the objective counts.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        by_length = chosen[np.argsort(examples.lengths()[chosen], kind="stable")]
        parts = []
        with torch.no_grad():
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                batch = examples.batch(rows)
                with around(params, batch):
                    parts.append(self._evaluate(params, batch, examples, rows, words, points))
        return {**merge(parts), "n": float(len(chosen))}

    def logits_with(
        self, params: Params, batch: Batch, examples: Examples, rows: Indices, words: Words | None
    ) -> Tensor:
        """Logits of a batch of these rows, with what their words add."""
        logits = self.logits(params, batch)
        if words is None:
            return logits
        return words.added(logits, *examples.tokens_of(rows))

    def _evaluate(
        self,
        params: Params,
        batch: Batch,
        examples: Examples,
        rows: Indices,
        words: Words | None,
        points: bool,
    ) -> Sums:
        logits = torch.empty(0)
        if self.objective.reads_logits:
            logits = self.logits_with(params, batch, examples, rows, words)
            loss = self.objective.loss_sum(logits, batch)
        else:
            loss = self.loss.sum(params, batch)
        sums: dict[str, Any] = {
            "loss_sum": float(loss),
            "weight": float(self.loss.weight(batch)),
        }
        if points:
            sums["points"] = self.objective.points(logits, examples, rows)
        sums |= self.objective.counts(logits, examples, rows)
        speech = examples.speech
        if not self.objective.speaks or speech is None:
            return sums
        prompts = [speech.prompt(examples, int(i)) for i in rows]
        said = continuations(
            self.logits, params, prompts, speech.tokens, speech.ends, examples.pad_id
        )
        return {**sums, **self.objective.agreement([*map(speech.words, said)], examples, rows)}


def task_from_model(
    model: Any,
    adapter: Adapter,
    key: Key,
    *,
    label_names: Sequence[str] | None,
    base_name: str,
    quantise: Literal["none", "int8", "int4"] = "none",
    head: Head | None = None,
    notes: tuple[str, ...] = (),
    pages: Pages | None = None,
) -> Task:
    """A Task from a Hugging Face model that is already built; the model is changed in place.

    Args:
        model: of the class of transformers that the objective names, on its device.
        adapter: what to train.
        key: of the adapter's first values.
        label_names: the classes in the order of the logits; None where there are none.
        base_name: what an exported adapter calls the base model.
        quantise: how the frozen matrices are stored.
        head: what the model ends in; None: classes, or the next token without any.
        notes: what a person should know of the model.
        pages: a map that holds the quantised matrices.
    """
    objective = objective_of(label_names, head)
    current = CurrentCall()
    model.eval()
    model.config.use_cache = False
    modules_of_head = head_modules(model, objective)
    blocks = Blocks.find(model, modules_of_head)
    before = {id(p) for p in model.parameters()}
    matrices = {} if quantise == "none" else matrices_of(model, blocks.names)
    wrapped = attach(model, adapter, key, objective, current)
    trainable = {
        name: p.detach().clone()
        for name, p in wrapped.named_parameters()
        if id(p) not in before or ".modules_to_save." in name
    }
    if isinstance(adapter, LoraSb | LoraHyper):  # its factors rest
        trainable = {n: x for n, x in trainable.items() if not is_a(n) and not is_b(n)}
    units = make_units(wrapped, trainable, modules_of_head)
    names = [n for unit in units for n in unit.params]
    names += [n for n in trainable if is_folded(n)]  # which the aggregator writes
    assert sorted(names) == sorted(trainable), "a trainable tensor without a unit"
    functional = Functional(wrapped, current)
    uses_types = getattr(model.config, "type_vocab_size", 0) > 1
    device = next(model.parameters()).device
    if quantise != "none":
        quantise_model(wrapped, matrices, quantise, pages)
    tail = find_tail(wrapped.get_base_model()) if objective.writes else None
    forward = Logits(wrapped, functional, frozenset(names), device, uses_types, objective, tail)
    modules = tuple(model.get_submodule(name) for name in blocks.names)
    if not isinstance(objective, NextToken):
        tail = None  # the loss is no sum over tokens
    return Task(
        params={n: trainable[n] for n in names},
        units=units,
        head=frozenset(n for unit in units if unit.is_head for n in unit.params),
        base_name=base_name,
        adapter=adapter,
        logits=forward,
        loss=ModelLoss(forward, tail=tail),
        loss_recomputed=ModelLoss(forward, modules, tail=tail),
        loss_structured=ModelLoss(forward, modules, Structured(wrapped, functional), tail),
        model=wrapped,
        notes=notes,
    )
