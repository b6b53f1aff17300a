"""The trainable tensors as units: what SPRY splits among clients (its section 4).

An adapted module is one unit: its A and B, its vector, factors or bias. The whole head is one more.
What only an aggregator writes (``core.lora.FOLDED``) is in none.
"""

from __future__ import annotations

import re
from typing import Any

from forefed.core.lora import CORE, is_folded
from forefed.core.types import Params, Unit
from forefed.models.attach import ADAPTER_NAME
from forefed.models.blocks import Blocks

PREFIX = "base_model.model."  # what PEFT puts before the names of the base model
_ADAPTERS = re.compile(
    rf"\.(?:lora_|ia3_l\.|beft_bias\.|flow_|hyper_|{CORE}$)"
)  # what it puts behind a module's name


def make_units(wrapped: Any, trainable: Params, head: tuple[str, ...]) -> tuple[Unit, ...]:
    """Units in depth order, the head last.

    Args:
        wrapped: the PEFT model.
        trainable: its trainable tensors by their PEFT names.
        head: names of the head's modules in the base model.
    """
    base = wrapped.get_base_model()
    blocks = Blocks.find(base, head)
    order = {name: i for i, (name, _) in enumerate(base.named_modules())}
    members: dict[str, list[str]] = {}
    for name in trainable:
        if not _is_head(name, head) and ".tinylora_v." not in name and not is_folded(name):
            module_name = _ADAPTERS.split(name.removeprefix(PREFIX))[0]
            members.setdefault(module_name, []).append(name)
    # All TinyLoRA vectors are registered below the first adapted module; each belongs to the module
    # that looks it up.
    by_key = {n.rsplit(".", 1)[1]: n for n in trainable if ".tinylora_v." in n}
    for module_name, module in base.named_modules():
        if ADAPTER_NAME in getattr(module, "_tinylora_v_key", {}):
            members[module_name] = [by_key[module._tinylora_v_key[ADAPTER_NAME]]]

    def unit(module: str, params: list[str]) -> Unit:
        size = sum(trainable[n].numel() for n in params)
        depth = blocks.depth(module, order)
        return Unit(blocks.readable(module), tuple(params), depth, size)

    body = sorted(
        (unit(module, params) for module, params in members.items()), key=lambda u: u.depth
    )
    head_params = tuple(n for n in trainable if _is_head(n, head))
    if not head_params:
        return tuple(body)
    size = sum(trainable[n].numel() for n in head_params)
    return (*body, Unit("head", head_params, len(blocks.names), size, is_head=True))


def _is_head(name: str, head: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{PREFIX}{h}.modules_to_save.") for h in head)
