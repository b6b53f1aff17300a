"""The repeated blocks of a model: where they are, and which block a module belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Blocks:
    """The names of a model's blocks in the order in which they run, e.g. ``bert.encoder.layer.0``.

    A model that uses one block several times (ALBERT) has it once here.
    """

    names: tuple[str, ...]

    @staticmethod
    def find(model: nn.Module, head: tuple[str, ...]) -> Blocks:
        """The items of the outermost ``ModuleList``s of the body that hold linear modules.

        Args:
            model: the Hugging Face model, without adapters.
            head: names of the head's modules, which are not searched.
        """
        found: list[str] = []
        for name, module in model.named_modules():
            inside = any(name == outer or name.startswith(f"{outer}.") for outer in (*found, *head))
            if inside or not isinstance(module, nn.ModuleList):
                continue
            found += [f"{name}.{i}" for i, block in enumerate(module) if any(linear_modules(block))]
        return Blocks(tuple(found))

    def index(self, module: str) -> int | None:
        """The position of the block that holds this module; None outside the blocks."""
        for i, name in enumerate(self.names):
            if module.startswith(f"{name}."):
                return i
        return None

    def relative(self, module: str) -> str:
        """The module's name below its block: ``attention.self.query``."""
        i = self.index(module)
        return module if i is None else module.removeprefix(f"{self.names[i]}.")

    def readable(self, module: str) -> str:
        """The module's name from the list of blocks on: ``layer.3.attention.self.query``.

        One part more where two lists have one name: ``encoder.block.3`` and ``decoder.block.3``.
        """
        i = self.index(module)
        if i is None:
            return module
        block = self.names[i].split(".")
        kept = 2
        while sum(name.split(".")[-kept:] == block[-kept:] for name in self.names) > 1:
            kept += 1
        return ".".join(block[-kept:]) + "." + self.relative(module)

    def depth(self, module: str, order: dict[str, int]) -> int:
        """Block index; -1 for a module that comes before the blocks, their number for one after.

        ``order`` is the position of every module of the model in the order of definition.
        """
        i = self.index(module)
        if i is not None or not self.names:
            return i if i is not None else -1
        return -1 if order[module] < order[self.names[0]] else len(self.names)


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Linear modules by name, GPT-2's transposed ``Conv1D`` among them."""
    from transformers.pytorch_utils import Conv1D

    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
