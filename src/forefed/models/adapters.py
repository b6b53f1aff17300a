"""What is trained: the adapters and their settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from forefed.core.errors import nearest
from forefed.core.settings import Choice, Registry
from forefed.models.targets import SYMBOLS

Targets = str | tuple[str, ...]
Layers = str | tuple[int, ...]


class Adapter(Choice):
    """Base of all adapters. The classification head is trained with every one of them."""

    reads_weights: ClassVar[bool] = False  # its first values follow from the frozen matrices
    only: ClassVar[str] = ""
    """The only ``sharing.kind`` under which it means something; empty: any."""

    def conflicts(self, config: Any) -> Iterator[str]:
        if self.only and config.sharing.kind != self.only:
            yield (
                f"adapter.kind = '{self.kind}': sharing.kind = '{config.sharing.kind}' would send "
                f"what is each client's own; set strategy = '{self.only}', or adapter.kind = 'lora'"
            )
        if self.only and config.model.adapter is not None:
            yield (
                f"model.adapter: with adapter.kind = '{self.kind}' training begins with an adapter "
                "of its own; leave it out"
            )


class Targeted(Adapter):
    """Base of the adapters that sit on linear modules of the body."""

    targets: Targets = "attention-qv"
    """``attention-qv`` (query and value projections), ``qv-and-outputs`` (and the outputs of
    attention and feed-forward), ``kv-and-feed-forward`` (key and value projections and the output
    of feed-forward), ``all-linear`` (all of the blocks), or a list of module names or of their
    endings. Where query, key and value are one fused matrix (GPT-2's ``c_attn``), that matrix is
    meant."""
    layers: Layers = "all"
    """``all``, ``first:N``, ``last:N`` (all, where blocks are fewer), or a list of block
    numbers from 0."""

    @field_validator("targets", mode="before")
    @classmethod
    def _known_symbol(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in SYMBOLS:
            raise ValueError(
                f"no such group of modules; {nearest(value, SYMBOLS)}. "
                "Modules by name are given as a list"
            )
        if isinstance(value, list | tuple) and not value:
            raise ValueError('an empty list trains nothing; use adapter.kind = "head"')
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _known_layers(cls, value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(r"all|(first|last):[1-9]\d*", value):
            raise ValueError('give "all", "first:N", "last:N" or a list of block numbers')
        if isinstance(value, list | tuple) and not value:
            raise ValueError('an empty list trains nothing; use adapter.kind = "head"')
        return value


class WithDropout(Targeted):
    """Base of the adapters with a branch of their own beside the frozen matrix."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the adapter's input during training; the frozen body has no dropout."""


class Lora(WithDropout):
    """A low-rank update B A of chosen weight matrices."""

    kind: Literal["lora"] = "lora"
    r: Annotated[int, Field(ge=1)] = 1
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """The update is scaled by alpha / r."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732)."""
    fold: bool = False
    """A dense matrix beside each adapted one, in which the aggregator keeps what is beyond the
    factors (``aggregator.kind = "fedex"`` or ``"flora"``); clients receive it, and train only the
    factors."""

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)

    source: ClassVar[str] = "Hu et al., arXiv 2106.09685"

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if self.fold and not config.aggregator.folds:
            yield (
                f"adapter.fold: aggregator.kind = '{config.aggregator.kind}' writes nothing there; "
                "leave it out, or set aggregator.kind = 'fedex' or 'flora'"
            )


class LoraSb(Lora):
    """B R A of chosen matrices: only the r x r matrix R is trained, between fixed A and B.

    A and B hold the matrix's own first singular vectors (LoRA-XS). Departure: LoRA-SB and Fed-SB
    take those of an estimated first update, for which clients would have to send a whole gradient.
    """

    kind: Literal["lora_sb"] = "lora_sb"  # type: ignore[assignment]

    source: ClassVar[str] = "Fed-SB, arXiv 2502.15436; LoRA-XS, arXiv 2405.17604"
    reads_weights: ClassVar[bool] = True


class LoraFlow(Lora):
    """LoRA with a second B of each client's own, and a gate between both for every token.

    The model of all clients has the common path alone, which is a plain LoRA.
    """

    kind: Literal["lora_flow"] = "lora_flow"  # type: ignore[assignment]
    gate: Annotated[int, Field(ge=1)] = 8
    """Width of every matrix's gate (published: one network of 32 beside the model)."""

    source: ClassVar[str] = "Flow, arXiv 2211.15281"
    only: ClassVar[str] = "flow"


class LoraHyper(Lora):
    """LoRA whose B is made by a network from an embedding; A rests."""

    kind: Literal["lora_hyper"] = "lora_hyper"  # type: ignore[assignment]
    embedding: Annotated[int, Field(ge=1)] = 64
    """Numbers of a client's embedding."""
    width: Annotated[int, Field(ge=1)] = 128
    """Features that the network makes of it, for every one of which each element of B has a
    weight."""

    source: ClassVar[str] = "HyperFL, arXiv 2412.07187"
    only: ClassVar[str] = "hyperfl"


class TinyLora(WithDropout):
    """A handful of numbers per matrix, between the frozen singular vectors of that matrix."""

    kind: Literal["tinylora"] = "tinylora"
    r: Annotated[int, Field(ge=1)] = 2
    """Singular vectors kept per matrix."""
    u: Annotated[int, Field(ge=1)] = 16
    """Trained numbers per matrix."""
    targets: Targets = "qv-and-outputs"
    projection_seed: Annotated[int, Field(ge=0)] = 42
    """Seed of the fixed random tensors between the u numbers and the r x r core."""

    source: ClassVar[str] = "arXiv 2602.04118; LoRA-XS, arXiv 2405.17604"
    reads_weights: ClassVar[bool] = True


class Ia3(Targeted):
    """A factor per output of chosen matrices, or per input of a feed-forward output."""

    kind: Literal["ia3"] = "ia3"
    targets: Targets = "kv-and-feed-forward"

    source: ClassVar[str] = "Liu et al., arXiv 2205.05638"


class BitFit(Targeted):
    """The bias terms of chosen linear modules; a module without one gets one of 0.

    What is trained is the change of the bias, from 0. Departure: the biases of LayerNorm stay
    frozen (published: all biases of the body).
    """

    kind: Literal["bitfit"] = "bitfit"
    targets: Targets = "all-linear"

    source: ClassVar[str] = "Ben Zaken et al., arXiv 2106.10199"


class HeadOnly(Adapter):
    """Nothing but the classification head."""

    kind: Literal["head"] = "head"

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.data.task.writes:
            yield (
                "adapter.kind = 'head': a language model has no classification head to train; "
                "set adapter.kind = 'lora' or 'tinylora'"
            )


ADAPTERS: Registry[Adapter] = Registry(
    "adapter", [Lora, LoraSb, LoraFlow, LoraHyper, TinyLora, Ia3, BitFit, HeadOnly]
)
