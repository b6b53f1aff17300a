"""Frozen linear layers with 8-bit or 4-bit weights.

Weights are only stored in few bits; all arithmetic stays in the model's own number format: a layer
writes its dequantised matrix into one buffer that all layers share, and multiplies. So the memory
of the frozen weights falls to about a quarter or a seventh of float32, plus one matrix.

Why own, and not a library (measured with torchao 0.18 and torch 2.13 on a CPU): torchao's int8
layers are as fast, but autograd keeps every layer's dequantised matrix for the backward pass (eight
layers of 1024 x 1024: 36 MB, here 6 with the buffer); its 4-bit layers need a further package or
spend a byte per weight; PEFT puts adapters on its int8 only. bitsandbytes is for CUDA first.
Neither knows GPT-2's transposed ``Conv1D``. The packed int8 product of CPU torch was 12 times
slower than this.

int8: q = round(w / s) in -127..127, s = max |w| / 127, one s per output row.
int4: q = round(w / s) in -8..7, s = m / -8 with m the largest w of a group of 64 columns by
magnitude, with its sign (so that m itself is exact; the law of ggml's Q4_0); two q in a byte.
An element is off by at most |s| / 2, in int4 by |s| where it lies within |s| / 2 of -m.

Axes: O output rows, I input columns, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forefed.models.functional import outside_transforms

GROUP = 64  # columns that share a scale in int4
BLOCK = 2**18
"""Elements dequantised at once on a CPU, where torch multiplies two number formats by way of a
float32 copy: a megabyte, which stays in the cache."""
Scheme = Literal["int8", "int4"]


class Workspace:
    """The buffer that all quantised layers of one model write their matrix into in turn."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0)

    def matrix(self, rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """[rows, columns] to be written over; what it was before is lost."""
        size = rows * columns
        if self.buffer.numel() < size or (self.buffer.dtype, self.buffer.device) != (
            dtype,
            like.device,
        ):
            self.buffer = torch.empty(size, dtype=dtype, device=like.device)
        return self.buffer[:size].view(rows, columns)


class QuantisedLinear(nn.Module):
    """``nn.Linear`` with frozen weights in few bits; in place of GPT-2's ``Conv1D`` too."""

    packed: Tensor
    scale: Tensor

    def __init__(
        self, weight_OI: Tensor, bias: nn.Parameter | None, scheme: Scheme, workspace: Workspace
    ):
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.scheme = scheme
        self.dtype = weight_OI.dtype
        self.workspace = workspace
        self.bias = bias
        quantise = {"int8": to_int8, "int4": to_int4}[scheme]
        packed, scale = quantise(weight_OI.detach().float())
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., O] of [..., I]."""
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Product.apply(x, self)
            return y if self.bias is None else y + self.bias
        return F.linear(x, self.weight_OI(), self.bias)  # value and tangents at once, nothing kept

    def weight_OI(self) -> Tensor:
        """The dequantised matrix, in the shared buffer: valid until the next layer runs."""
        with torch.no_grad(), outside_transforms():
            return self.dequantise(self.workspace)

    def dequantise(self, into: Workspace) -> Tensor:
        columns = self.in_features if self.scheme == "int8" else self.packed.shape[1] * GROUP
        out_OI = into.matrix(self.out_features, columns, self.packed, self.dtype)
        at_once = max(1, BLOCK // columns) if out_OI.device.type == "cpu" else self.out_features
        parts = zip(*(x.split(at_once) for x in (out_OI, self.packed, self.scale)), strict=True)
        for out, packed, scale in parts:
            if self.scheme == "int8":
                out.copy_(packed).mul_(scale)
            else:
                halves = out.unflatten(1, (-1, 2, GROUP // 2))
                halves[:, :, 0].copy_(packed & 15)
                halves[:, :, 1].copy_(packed >> 4)
                halves.sub_(8).mul_(scale[..., None])
        return out_OI[:, : self.in_features]

    def part(self, rows: slice | Tensor) -> QuantisedLinear:
        """The layer with some of its outputs only."""
        part = copy(self)
        part._buffers = {n: x[rows] for n, x in self._buffers.items() if x is not None}
        part.out_features = len(part.packed)
        if self.bias is not None:
            part._parameters = {"bias": nn.Parameter(self.bias.detach()[rows], requires_grad=False)}
        return part

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.scheme}"


class _Product(torch.autograd.Function):
    """x W^T that keeps nothing: autograd would keep W, the shared buffer, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight_OI())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight_OI(), None


def some_outputs(layer: Any, rows: slice) -> Callable[[Tensor], Tensor]:
    """A frozen linear layer with some of its outputs only: a function of [..., I].

    Raises:
        TypeError: it is none.
    """
    if isinstance(layer, QuantisedLinear):
        return layer.part(rows)
    weight_RI, bias_R = weights_of(layer, rows)
    return lambda x: F.linear(x, weight_RI, bias_R)


def weights_of(layer: Any, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows of a frozen linear layer's matrix, and of its bias.

    Raises:
        TypeError: it is none.
    """
    if isinstance(layer, QuantisedLinear):
        part = layer.part(rows)
        return part.weight_OI(), part.bias
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{type(layer).__name__} is no linear layer")
    return layer.weight[rows], None if layer.bias is None else layer.bias[rows]


def to_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [O, I], and scales [O, 1] in float32."""
    scale_O1 = _nonzero(weight_OI.abs().amax(1, keepdim=True) / 127)
    return (weight_OI / scale_O1).round().to(torch.int8), scale_O1


def to_int4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [O, G, 32], and scales [O, G, 1] in float32; the last group is filled up with zeros.

    Column j of a group is in the low half of byte j, column 32 + j in its high half, each plus 8.
    """
    groups_OG64 = F.pad(weight_OI, (0, -weight_OI.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest_OG1 = groups_OG64.gather(2, groups_OG64.abs().argmax(2, keepdim=True))
    scale_OG1 = _nonzero(largest_OG1 / -8)
    codes = (groups_OG64 / scale_OG1).round().clamp(-8, 7).add(8).to(torch.uint8)
    low, high = codes.split(GROUP // 2, dim=2)
    return low | (high << 4), scale_OG1


def _nonzero(scale: Tensor) -> Tensor:
    """The scale, 1 where everything is zero anyway."""
    return torch.where(scale == 0, 1.0, scale)


def quantise_blocks(blocks: Iterable[nn.Module], scheme: Scheme) -> None:
    """Stores the frozen linear layers of these modules in few bits, in place, one by one.

    Adapters stay as they are, and so does everything outside: embeddings and the head.
    """
    from transformers.pytorch_utils import Conv1D

    workspace = Workspace()
    for block in blocks:
        for name, module in list(block.named_modules()):
            if not isinstance(module, nn.Linear | Conv1D) or _is_adapters(name, module):
                continue
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
            parent, _, child = name.rpartition(".")
            layer = QuantisedLinear(weight, module.bias, scheme, workspace)
            setattr(block.get_submodule(parent), child, layer)


def parameter_count(model: nn.Module) -> int:
    """Numbers that make up a model, however they are stored."""
    stored = sum(p.numel() for p in model.parameters())
    layers = (m for m in model.modules() if isinstance(m, QuantisedLinear))
    return stored + sum(m.out_features * m.in_features for m in layers)


def weights_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters and buffers; shared ones count once."""
    storages = {x.data_ptr(): x.nbytes for x in (*model.parameters(), *model.buffers())}
    return sum(storages.values())


def _is_adapters(name: str, module: nn.Module) -> bool:
    """A matrix of an adapter, or PEFT's wrapper around the frozen layer (a Linear by its class)."""
    inside = any(part.startswith(("lora_", "tinylora_")) for part in name.split("."))
    return inside or hasattr(module, "base_layer")
