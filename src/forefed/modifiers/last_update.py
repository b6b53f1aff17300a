"""The last aggregate, broadcast: FwdLLM (arXiv 2308.13894) chooses its directions along it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from forefed.core.states import State
from forefed.core.types import Params, ServerContext
from forefed.modifiers.modifier import Modifier


class LastUpdate(Modifier):
    """Clients are told the last aggregate, along which candidate directions are chosen."""

    kind: Literal["last_update"] = "last_update"
    source: ClassVar[str] = "FwdLLM, arXiv 2308.13894"

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        return total, {**state, **total}

    def broadcast(self, state: State) -> State:
        return state

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if not config.directions.along_last:
            yield (
                "modifiers: 'last_update' is broadcast for directions.kind = 'candidates'; set "
                "that, or drop it"
            )
