"""Which engine each client runs: the configured one, or by its memory (``engine.kind = "auto"``).

A federation may mix devices: ``memory`` is one budget, or groups of clients with a share each. The
planner measures once, and chooses an engine for every group. What it chose is kept in the run's
folder (plan.json), because a resumed run must train as before whatever the clock says today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from forefed.core.files import write_json
from forefed.core.keys import Key
from forefed.core.sizes import format_bytes
from forefed.core.types import Order, Unit
from forefed.data.prepare import Prepared
from forefed.gradients import ENGINES, GradientEngine
from forefed.gradients.auto import Auto
from forefed.plan import Plan, Scene, plan
from forefed.plan.plan import choose, noise_of, own_precision
from forefed.run.config import Budget, Config
from forefed.run.record import read_json

PLAN = "plan.json"
Planner = Callable[[Scene], Plan]


def measure_now(scene: Scene) -> Plan:
    """A plan in the precision that the run has anyway."""
    return plan(scene, precisions=(own_precision(scene),))


@dataclass(frozen=True)
class Engines:
    """The engine of every client: a function of the run's key and the client's number."""

    key: Key
    groups: tuple[tuple[float, GradientEngine], ...]
    """Shares of the clients, and their engines."""

    def of(self, client: int) -> GradientEngine:
        if len(self.groups) == 1:
            return self.groups[0][1]
        drawn = float(self.key.fold("memory", client).uniform((1,)))
        for share, engine in self.groups:
            drawn -= share
            if drawn < 0:
                return engine
        return self.groups[-1][1]


def variance_of(engine: GradientEngine, order: Order, head: frozenset[str]) -> Mapping[str, float]:
    """1 + v by parameter: E|estimate|^2 over |gradient|^2 of what this engine sends; exact: 1."""
    perturbed = engine.perturbed(list(order.assigned), head)
    elements = sum(order.params[n].numel() for n in perturbed)
    noise = noise_of(engine, elements)
    return {n: 1 + (noise if n in perturbed else 0.0) for n in order.assigned}


def resolve(
    config: Config,
    units: tuple[Unit, ...],
    data: Prepared,
    planner: Planner,
    say: Callable[[str], None],
) -> Engines:
    """The engines of a run; measured only where no earlier start of it has kept them.

    Raises:
        UserError: a budget in which nothing works.
    """
    key = Key(config.seed)
    if not isinstance(config.engine, Auto):
        return Engines(key, ((1.0, config.engine),))
    path = config.folder / PLAN
    if path.exists():
        kept = read_json(path)["groups"]
        return Engines(key, tuple((g["share"], ENGINES.parse(g["engine"])) for g in kept))
    say("planning: measuring this machine (plan.json keeps the result)")
    found = planner(scene_of(config, units, data))
    groups = [_group(found, budget) for budget in config.memory or (None,)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"groups": groups, "plan": found.to_json()})
    for group in groups:
        say(f"{group['budget'] or 'no limit'}: {group['engine']['kind']}, as {group['reason']}")
    return Engines(key, tuple((g["share"], ENGINES.parse(g["engine"])) for g in groups))


def _group(found: Plan, budget: Budget | None) -> dict[str, Any]:
    row, reason = choose(found.rows, budget.budget if budget else None)
    return {
        "budget": format_bytes(budget.budget) if budget else None,
        "share": budget.share if budget else 1.0,
        "engine": row.engine.model_dump(mode="json"),
        "total": row.total,
        "reason": reason,
    }


def scene_of(config: Config, units: tuple[Unit, ...], data: Prepared) -> Scene:
    """The dearest step of this run: its longest text, and the position with the most units."""
    cohort = config.assign.names(units, config.cohort, Key(config.seed).fold("plan"))
    body = {n for u in units if not u.is_head for n in u.params[:1]}
    most = max(sum(1 for n in names if n in body) for names in cohort)
    train = data.population.examples
    size = config.client.batch_size
    shown = range(min(data.population.size, 1000))
    return Scene(
        model=config.model,
        adapter=config.adapter,
        labels=len(data.label_names) if config.data.task.head != "causal_lm" else 0,
        batch=max(len(data.population.client(i).train) for i in shown) if size == "all" else size,
        seq=int(train.lengths().max()),
        units=most or None,
    )
