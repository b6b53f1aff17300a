"""``forefed plan``: from the words of the command line to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forefed.core.errors import UserError, nearest
from forefed.core.settings import parse
from forefed.models.settings import ModelSettings
from forefed.plan import Plan, Scene, plan
from forefed.run.config import assignment, merge

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")


def plan_from_options(
    model: dict[str, Any],
    adapter: Sequence[str],
    scene: dict[str, Any],
    memory: str | None,
    precisions: Sequence[str] | None,
    say: Callable[[str], None],
) -> Plan:
    """A plan for SPRY's adapter, or the one that the options describe.

    Raises:
        UserError: an option that does not fit; names it.
    """
    for name in precisions or ():
        if name not in PRECISIONS:
            raise UserError(f"--precision {name}: {nearest(name, PRECISIONS)}")
    chosen: dict[str, Any] = {"kind": "tinylora", "r": 4, "u": 16}
    for item in adapter:
        change = assignment(item)
        chosen = change if "kind" in change else merge(chosen, change)
    raw = {"model": parse(ModelSettings, model, "model"), "adapter": chosen, **scene}
    return plan(parse(Scene, raw), memory, precisions=precisions or None, say=say)
