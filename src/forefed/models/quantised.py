"""Frozen matrices with 8-bit or 4-bit weights: of the blocks, the embedding, the output.

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forefed.models.functional import outside_transforms
from forefed.models.pages import Pages

LARGEST = 2**21
"""Elements of a matrix that are dequantised at once: the output matrix of a language model is
multiplied in parts, or it alone would be larger than all else."""
GROUP = 64  # columns that share a scale in int4
BLOCK = 2**18
"""Elements dequantised at once on a CPU, where torch multiplies two number formats by way of a
float32 copy: a megabyte, which stays in the cache."""
Scheme = Literal["int8", "int4"]


class Workspace:
    """The buffer that all quantised layers of one model write their matrix into in turn."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0)
        self.holds: object = None
        """What was written last."""

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
    """``nn.Linear`` with frozen weights in few bits; in place of GPT-2's ``Conv1D`` too.

    ``pages``: where they are, if not in memory.
    """

    packed: Tensor
    scale: Tensor

    def __init__(
        self,
        weight_OI: Tensor,
        bias: nn.Parameter | None,
        scheme: Scheme,
        workspace: Workspace,
        stored: tuple[Tensor, Tensor] | None = None,
        pages: Pages | None = None,
    ):
        """``stored``: what ``pack`` made of the matrix; then only its shape and dtype are read."""
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.scheme = scheme
        self.dtype = weight_OI.dtype
        self.workspace = workspace
        self.bias = bias
        self.pages = pages
        packed, scale = pack(weight_OI, scheme) if stored is None else stored
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., O] of [..., I]."""
        if self.out_features * self.in_features > LARGEST:
            step = max(1, LARGEST // self.in_features)
            starts = range(0, self.out_features, step)
            return torch.cat([self.part(slice(i, i + step))(x) for i in starts], -1)
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Product.apply(x, self)
        else:
            y = self.product(x)  # value and tangents at once, nothing kept
        return y if self.bias is None else y + self.bias

    @property
    def by_row(self) -> bool:
        """Is the scale left to the product? Its sums are 127 times as large then, which float16
        cannot hold."""
        return self.scheme == "int8" and self.dtype != torch.float16

    def product(self, x: Tensor) -> Tensor:
        """x W^T."""
        y = F.linear(x, self._matrix(self.by_row))
        return (y * self.scale[:, 0]).to(y.dtype) if self.by_row else y

    def by_input(self, grad: Tensor) -> Tensor:
        """g W."""
        if self.by_row:
            grad = (grad * self.scale[:, 0]).to(grad.dtype)
        return grad @ self._matrix(self.by_row)

    def weight_OI(self) -> Tensor:
        """The dequantised matrix, in the shared buffer: valid until the next layer runs."""
        return self._matrix(False)

    def _matrix(self, codes: bool) -> Tensor:
        """``codes``: the integers instead, without their scale."""
        with torch.no_grad(), outside_transforms():
            return self.dequantise(self.workspace, codes)

    def dequantise(self, into: Workspace, codes: bool = False) -> Tensor:
        columns = self.in_features if self.scheme == "int8" else self.packed.shape[1] * GROUP
        before = into.holds
        out_OI = into.matrix(self.out_features, columns, self.packed, self.dtype)
        into.holds = None if self.pages is None else (self.packed.data_ptr(), out_OI.shape, codes)
        if into.holds is not None and into.holds == before:
            return out_OI[:, : self.in_features]
        if self.pages is not None:
            self.pages.ahead(self.packed)
        at_once = max(1, BLOCK // columns) if out_OI.device.type == "cpu" else self.out_features
        parts = zip(*(x.split(at_once) for x in (out_OI, self.packed, self.scale)), strict=True)
        for out, packed, scale in parts:
            if self.scheme == "int8":
                out.copy_(packed)
                if not codes:
                    out.mul_(scale)
            else:
                halves = out.unflatten(1, (-1, 2, GROUP // 2))
                halves[:, :, 0].copy_(packed & 15)
                halves[:, :, 1].copy_(packed >> 4)
                halves.sub_(8).mul_(scale[..., None])
        if self.pages is not None:
            self.pages.done(self.packed, self.scale)
        return out_OI[:, : self.in_features]

    def part(self, rows: slice | Tensor) -> QuantisedLinear:
        """The layer with some of its outputs only."""
        part, pages = copy(self), self.pages
        vars(part).pop("forward", None)  # a function that stands in for the whole layer's
        with torch.no_grad(), outside_transforms():
            if pages is not None and isinstance(rows, Tensor):
                some = {n: pages.rows(x, rows) for n, x in self._buffers.items() if x is not None}
                part.pages = None
            else:
                some = {n: x[rows] for n, x in self._buffers.items() if x is not None}
            part._buffers = dict(some)
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
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.by_input(grad), None


class QuantisedEmbedding(nn.Module):
    """``nn.Embedding`` whose rows are those of a quantised matrix, dequantised when looked up."""

    def __init__(self, table: QuantisedLinear):
        super().__init__()
        self.table = table
        self.num_embeddings, self.embedding_dim = table.out_features, table.in_features

    @property
    def weight(self) -> Tensor:
        """A dequantised copy of all rows."""
        return self.table.weight_OI().clone()

    def forward(self, ids: Tensor) -> Tensor:
        """[..., H] of [...]."""
        rows = self.table.part(ids.flatten()).weight_OI().clone()
        return rows.view(*ids.shape, self.embedding_dim)


def some_outputs(layer: Any, rows: slice) -> Callable[[Tensor], Tensor]:
    """A frozen linear layer with some of its outputs only: a function of [..., I].

    Raises:
        TypeError: it is none.
    """
    if isinstance(layer, QuantisedLinear):
        return layer.part(rows).forward  # a module would become one of the model's
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


def pack(weight_OI: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Integers and scales of a matrix."""
    quantise = {"int8": to_int8, "int4": to_int4}[scheme]
    return quantise(weight_OI.detach().float())


def matrices_of(model: Any, blocks: Sequence[str]) -> dict[str, nn.Module]:
    """The frozen matrices of a model without adapters, by name: of its blocks, of its embedding of
    tokens, and of a language model's output."""
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Any] = {
        f"{block}.{name}": module
        for block in blocks
        for name, module in model.get_submodule(block).named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    output = getattr(model, "get_output_embeddings", lambda: None)()
    ends: Any = (output, model.get_input_embeddings())
    names = {module: name for name, module in model.named_modules()}
    for module, kind in zip(ends, (nn.Linear, nn.Embedding), strict=True):
        if type(module) is kind:
            found[names[module]] = module
    return found


def named_once(matrices: Mapping[str, Any]) -> dict[int, str]:
    """One name for each matrix: an output matrix may be the embedding, too."""
    names: dict[int, str] = {}
    for name, module in matrices.items():
        names.setdefault(id(module.weight), name)
    return names


def weight_of(module: Any) -> Tensor:
    """[O, I]; of an embedding a row for each token."""
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def quantise(
    model: nn.Module, matrices: Mapping[str, nn.Module], scheme: Scheme, pages: Pages | None = None
) -> None:
    """Stores these matrices of the model in few bits, in place, one by one.

    Args:
        matrices: of ``matrices_of``, before the model got its adapter; adapters stay as they are.
        pages: where they are already; what is not there stays as it is.
    """
    workspace = Workspace()
    wanted, names = set(matrices.values()), named_once(matrices)
    made: dict[str, QuantisedLinear] = {}
    for place, module in list(model.named_modules()):
        name = names[id(module.weight)] if module in wanted else None
        if name is None or (pages is not None and name not in pages.matrices):
            continue
        weight = weight_of(module)
        if name not in made:
            stored = None if pages is None else pages.matrix(name)
            made[name] = QuantisedLinear(weight, None, scheme, workspace, stored, pages)
        layer = made[name]
        new: nn.Module = copy(layer)
        if isinstance(module, nn.Embedding):
            new = QuantisedEmbedding(layer)
        elif getattr(module, "bias", None) is not None:
            new = QuantisedLinear(
                weight, module.bias, scheme, workspace, (layer.packed, layer.scale), pages
            )
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    empty = [n for n, x in model.named_parameters() if x.numel() > 1 and 0 in x.stride()]
    assert not empty, f"a matrix that is neither here nor in the map: {empty}"


def parameter_count(model: nn.Module) -> int:
    """Numbers that make up a model, however they are stored."""
    stored = sum(p.numel() for p in model.parameters())
    layers = (m for m in model.modules() if isinstance(m, QuantisedLinear))
    once = {m.packed.data_ptr(): m.out_features * m.in_features for m in layers}
    return stored + sum(once.values())


def weights_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters and buffers; shared ones count once, mapped ones not."""
    mapped = {
        x.data_ptr()
        for m in model.modules()
        if isinstance(m, QuantisedLinear) and m.pages is not None
        for x in (m.packed, m.scale)
    }
    storages = {x.data_ptr(): x.nbytes for x in (*model.parameters(), *model.buffers())}
    return sum(n for place, n in storages.items() if place not in mapped)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's state, sorted by name, of which mapped tensors do not stay in memory."""
    layers = (m for m in model.modules() if isinstance(m, QuantisedLinear))
    maps = {m.pages for m in layers if m.pages is not None}
    for name, x in sorted(model.state_dict().items()):
        yield name, x
        for pages in maps:
            if isinstance(x, Tensor) and pages.holds(x):
                pages.done(x)


def frozen_dtype(model: nn.Module) -> torch.dtype:
    """What the frozen weights are computed with in."""
    layers = (m.dtype for m in model.modules() if isinstance(m, QuantisedLinear))
    return next(layers, next(model.parameters()).dtype)
