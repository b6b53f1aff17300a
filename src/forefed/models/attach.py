"""Puts an adapter (PEFT) on a Hugging Face model and gives every trainable tensor its first value.

PEFT draws from torch's global generator. That generator is put back afterwards, and whatever PEFT
drew is overwritten with values of a key, so that one key gives one model everywhere.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from forefed.core.errors import UserError
from forefed.core.hyper import BIAS, EMBEDDING, INSIDE, OUTSIDE, SHIFT, features, generated
from forefed.core.keys import Key
from forefed.core.lora import CORE, FOLDED
from forefed.core.routes import GATE_IN, GATE_OUT, OWN, ROUTE, beside
from forefed.models.adapters import (
    Adapter,
    BitFit,
    HeadOnly,
    Ia3,
    Lora,
    LoraFlow,
    LoraHyper,
    LoraSb,
    Targeted,
    TinyLora,
)
from forefed.models.blocks import Blocks
from forefed.models.functional import CurrentCall, KeyedDropout
from forefed.models.objectives import Objective
from forefed.models.targets import feed_forward_outputs, resolve

ADAPTER_NAME = "default"  # PEFT's own default; part of every parameter name
HARMLESS = 1024
"""A rank that costs little, also where a small model's matrices are smaller."""


def head_modules(model: Any, objective: Objective) -> tuple[str, ...]:
    """Names of the modules that belong to the head: all outside the body.

    ``classifier`` or ``score`` mostly; DistilBERT's ``pre_classifier`` too; ``qa_outputs`` where
    spans are found. A language model has none. A model's ``pooler`` counts if its checkpoint did
    not have one (``untrained_pooler``).
    """
    if not objective.has_head:
        return ()
    names = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    return (*getattr(model, "untrained_pooler", ()), *names)


def attach(
    model: Any, adapter: Adapter, key: Key, objective: Objective, current: CurrentCall
) -> Any:
    """The model with its adapter, as a PEFT model; all parameters frozen, in eval mode.

    Args:
        model: a Hugging Face model; it is changed in place.
        adapter: what to train.
        key: of the first values: A of LoRA is uniform in +-1/sqrt(fan-in) (Kaiming with a =
            sqrt(5)), B, TinyLoRA's vectors and biases are 0, factors 1; the head keeps the model's
            values.
        objective: what the model learns.
        current: where the adapter's dropout finds the key of the running call.

    Raises:
        UserError: targets that match nothing, head-only training of a model without a head.
    """
    from peft import get_peft_model

    _switch_caches_off(model)
    head = head_modules(model, objective)
    config = peft_config(model, adapter, head, objective)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT's calls of transformers
        warnings.filterwarnings("ignore", "Detected that the base layer has no bias")  # BitFit
        wrapped = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    wrapped.eval()
    if isinstance(adapter, Lora) and adapter.fold:
        _add_dense_parts(wrapped)
    working = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parameter.data = _first_value(name, parameter.data, key).to(working)
        parameter.requires_grad_(False)
    if isinstance(adapter, LoraSb):
        _add_cores(wrapped, working)
    if isinstance(adapter, LoraFlow):
        _add_paths(wrapped, adapter.gate, key, working)
    if isinstance(adapter, LoraHyper):
        _add_network(wrapped, adapter, key, working)
    _fix_singular_vectors(wrapped)
    _replace_dropout(wrapped, current)
    for name in head:
        wrapped.get_base_model().get_submodule(name).register_forward_pre_hook(_cast_input(working))
    return wrapped


def peft_config(model: Any, adapter: Adapter, head: tuple[str, ...], objective: Objective) -> Any:
    """The PEFT configuration of an adapter on this model."""
    from peft import BeftConfig, IA3Config, LoraConfig, TinyLoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    common: dict[str, Any] = {
        "task_type": objective.peft_task,
        "modules_to_save": list(head) or None,
    }
    if isinstance(adapter, HeadOnly):
        if not objective.has_head:
            raise UserError(
                'adapter.kind = "head": a language model has no classification head; '
                'choose "lora" or "tinylora"'
            )
        return LoraConfig(r=1, target_modules=DUMMY_TARGET_MODULES, **common)
    assert isinstance(adapter, Targeted), adapter
    blocks = Blocks.find(model, head)
    targets = resolve(model, blocks, head, adapter.targets, adapter.layers)
    common["target_modules"] = targets
    transposed = not isinstance(model.get_submodule(targets[0]), nn.Linear)
    if isinstance(adapter, BitFit):
        if transposed:
            raise UserError(
                "adapter.kind = 'bitfit': PEFT cannot put biases on this model's transposed "
                f"layers ('{targets[0]}'); choose 'ia3', 'lora' or 'tinylora'"
            )
        return BeftConfig(**common)
    common["fan_in_fan_out"] = transposed
    if isinstance(adapter, Ia3):
        at_input = feed_forward_outputs(blocks, targets)
        return IA3Config(feedforward_modules=at_input, **common)
    if isinstance(adapter, Lora | TinyLora):
        widest = max(max(model.get_submodule(name).weight.shape) for name in targets)
        if adapter.r > max(widest, HARMLESS):
            raise UserError(
                f"adapter.r = {adapter.r}: no matrix of this model has so many rows or columns "
                f"({widest} at most), and the rank of none can be higher; lower it"
            )
    if isinstance(adapter, Lora):
        return LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT only divides it by r
            use_rslora=adapter.rslora,
            lora_dropout=adapter.dropout,
            **common,
        )
    assert isinstance(adapter, TinyLora), adapter
    return TinyLoraConfig(
        r=adapter.r,
        u=adapter.u,
        tinylora_dropout=adapter.dropout,
        projection_seed=adapter.projection_seed,
        save_projection=True,
        **common,
    )


def draw_missing(model: nn.Module, names: set[str], std: float, key: Key) -> None:
    """Gives the named parameters values of the key: matrices N(0, std^2), norms 1, biases 0."""
    for name, parameter in model.named_parameters():
        if name in names:
            if parameter.dim() > 1:
                value = std * key.fold("init", name).normal(parameter.shape)
            else:
                fill = 0.0 if name.endswith("bias") else 1.0
                value = torch.full(parameter.shape, fill)
            parameter.data = value.to(parameter.dtype).to(parameter.device)


def _first_value(name: str, value: Tensor, key: Key) -> Tensor:
    if ".lora_A." in name:
        bound = value.shape[1] ** -0.5
        drawn: Tensor = (2 * key.fold("init", name).uniform(value.shape) - 1) * bound
        return drawn.to(value.device)
    if ".lora_B." in name or ".tinylora_v." in name:
        return torch.zeros_like(value)
    return value


def _fix_singular_vectors(wrapped: Any) -> None:
    """Fixes each pair of singular vectors' free sign: the right one's largest entry is positive."""
    for module in wrapped.modules():
        if ADAPTER_NAME in getattr(module, "tinylora_A", {}):
            a_rI, b_Or = module.tinylora_A[ADAPTER_NAME], module.tinylora_B[ADAPTER_NAME]
            largest_r1 = a_rI.abs().argmax(dim=1, keepdim=True)
            sign_r = torch.where(a_rI.gather(1, largest_r1)[:, 0] < 0, -1.0, 1.0).to(a_rI)
            module.tinylora_A[ADAPTER_NAME] = (sign_r[:, None] * a_rI).contiguous()
            module.tinylora_B[ADAPTER_NAME] = (b_Or * sign_r).contiguous()


def _add_cores(wrapped: Any, dtype: torch.dtype) -> None:
    """A and B of the matrix's singular vectors, and R [r, r] of 0 between them.

    Of each pair of vectors the right one's largest entry is positive. Where a matrix has fewer than
    r, rows of A and columns of B are 0.
    """
    for layer in wrapped.modules():
        if ADAPTER_NAME not in getattr(layer, "lora_A", {}):
            continue
        a, b = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
        weight_OI = layer.get_base_layer().weight.detach().cpu().double()
        weight_OI = weight_OI.T if layer.fan_in_fan_out else weight_OI
        u_Ok, _, vt_kI = torch.linalg.svd(weight_OI, full_matrices=False)
        r, k = a.out_features, min(a.out_features, len(vt_kI))
        largest_k1 = vt_kI.abs().argmax(dim=1, keepdim=True)
        sign_k = torch.where(vt_kI.gather(1, largest_k1)[:, 0] < 0, -1.0, 1.0).double()
        a.weight.data, b.weight.data = torch.zeros_like(a.weight), torch.zeros_like(b.weight)
        a.weight.data[:k] = (sign_k[:k, None] * vt_kI[:k]).to(a.weight)
        b.weight.data[:, :k] = (u_Ok[:, :k] * sign_k[:k]).to(b.weight)
        zeros_rr = torch.zeros(r, r, dtype=dtype, device=a.weight.device)
        layer.register_parameter(CORE, nn.Parameter(zeros_rr, requires_grad=False))
        a.register_forward_hook(_through_core(layer))


def _through_core(layer: Any) -> Any:
    def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return nn.functional.linear(output, getattr(layer, CORE).to(output.dtype))

    return hook


def _add_paths(wrapped: Any, width: int, key: Key, dtype: torch.dtype) -> None:
    """A client's own B of 0 beside every adapted matrix, and a gate that is half open to it; shut
    off by its route, until a client sets that (``core.routes``)."""
    for name, module in wrapped.named_modules():
        if ADAPTER_NAME not in getattr(module, "lora_A", {}):
            continue
        a, b = module.lora_A[ADAPTER_NAME].weight, module.lora_B[ADAPTER_NAME].weight
        inside = key.fold("init", name, GATE_IN).normal((width, a.shape[1])) / a.shape[1] ** 0.5
        parts = {
            OWN: torch.zeros_like(b, dtype=dtype),
            GATE_IN: inside.to(a.device, dtype),
            GATE_OUT: torch.zeros(width + 1, dtype=dtype, device=a.device),
            ROUTE: torch.zeros(3, dtype=dtype, device=a.device),
        }
        for part, x in parts.items():
            module.register_parameter(part, nn.Parameter(x, requires_grad=False))
        module.register_forward_hook(_second_path)


def _second_path(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    a, b = module.lora_A[ADAPTER_NAME].weight, module.lora_B[ADAPTER_NAME].weight
    x = inputs[0].to(a.dtype)
    low = nn.functional.linear(module.lora_dropout[ADAPTER_NAME](x), a)
    parts = {part: getattr(module, part) for part in (OWN, GATE_IN, GATE_OUT, ROUTE)}
    added = beside(x, low, b, parts) * module.scaling[ADAPTER_NAME]
    return output + added.to(output.dtype)


def _add_network(wrapped: Any, adapter: LoraHyper, key: Key, dtype: torch.dtype) -> None:
    """What makes every B: the embedding and its features at the first adapted matrix, and a linear
    map of 0 at each. LoRA's own B of 0 rests beside it."""
    layers = [m for m in wrapped.modules() if ADAPTER_NAME in getattr(m, "lora_A", {})]
    d, w = adapter.embedding, adapter.width
    shared = {
        EMBEDDING: key.fold("init", EMBEDDING).normal((d,)),
        INSIDE: key.fold("init", INSIDE).normal((w, d)) / d**0.5,
        SHIFT: torch.zeros(w),
    }
    for layer in layers:
        b = layer.lora_B[ADAPTER_NAME].weight
        own = {OUTSIDE: torch.zeros(b.numel(), w), BIAS: torch.zeros(b.numel())}
        for part, x in {**(shared if layer is layers[0] else {}), **own}.items():
            placed = x.to(b.device, dtype)
            layer.register_parameter(part, nn.Parameter(placed, requires_grad=False))
        layer.register_forward_hook(_made_path(layers[0]))


def made(first: Any, layer: Any) -> Tensor:
    """B [O, r] of a layer, as the network makes it; ``first``: the layer with the embedding."""
    f_w = features(*(getattr(first, part) for part in (EMBEDDING, INSIDE, SHIFT)))
    rank = layer.lora_A[ADAPTER_NAME].weight.shape[0]
    return generated(f_w, getattr(layer, OUTSIDE), getattr(layer, BIAS), rank)


def _made_path(first: Any) -> Any:
    def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        a = module.lora_A[ADAPTER_NAME].weight
        x = module.lora_dropout[ADAPTER_NAME](inputs[0].to(a.dtype))
        beside = nn.functional.linear(nn.functional.linear(x, a), made(first, module))
        return output + (beside * module.scaling[ADAPTER_NAME]).to(output.dtype)

    return hook


def _add_dense_parts(wrapped: Any) -> None:
    """R [O, I] of 0 beside every adapted matrix, so that it is W + s (B A + R)."""
    for module in wrapped.modules():
        if ADAPTER_NAME in getattr(module, "lora_A", {}):
            a, b = module.lora_A[ADAPTER_NAME], module.lora_B[ADAPTER_NAME]
            zeros_OI = torch.zeros(b.out_features, a.in_features, dtype=a.weight.dtype)
            module.register_parameter(FOLDED, nn.Parameter(zeros_OI.to(a.weight.device)))
            module.register_forward_hook(_dense_part(module.scaling[ADAPTER_NAME]))


def _dense_part(scale: float) -> Any:
    def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        dense_OI = getattr(module, FOLDED)
        beside = nn.functional.linear(inputs[0].to(dense_OI.dtype), dense_OI) * scale
        return output + beside.to(output.dtype)

    return hook


def _replace_dropout(wrapped: Any, current: CurrentCall) -> None:
    for name, module in list(wrapped.named_modules()):
        is_adapters = name.endswith(f"lora_dropout.{ADAPTER_NAME}")  # TinyLoRA's too
        if is_adapters and isinstance(module, nn.Dropout):
            layers = wrapped.get_submodule(name.rpartition(".")[0])
            layers[ADAPTER_NAME] = KeyedDropout(module.p, name, current)


def _switch_caches_off(model: nn.Module) -> None:
    """No keys and values are kept for a next token, anywhere: T5's decoder has its own setting."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False


def _cast_input(dtype: torch.dtype) -> Any:
    """The head computes in the dtype of its own tensors, whatever the body's is."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in inputs)

    return hook
