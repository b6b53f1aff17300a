"""Which engine each client runs: the configured one, or by its memory (``engine.kind = "auto"``).

A federation may mix devices: ``memory`` is one budget, or groups of clients with a share each. The
planner measures once, and chooses an engine for every group. What it chose is kept in the run's
folder (plan.json), because a resumed run must train as before whatever the clock says today.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forefed.config.compat import check
from forefed.config.config import Budget, Config
from forefed.config.former import present
from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.core.keys import Key
from forefed.core.settings import canonical
from forefed.core.sizes import format_bytes
from forefed.core.types import Json, Unit
from forefed.data.prepare import Prepared
from forefed.directions import DIRECTIONS, Directions, Fresh, taking
from forefed.gradients import ENGINES
from forefed.gradients.auto import Auto
from forefed.models.inspect import longest_text
from forefed.models.objectives import objective_of
from forefed.models.shell import load_config
from forefed.plan import Plan, Scene, Way, plan
from forefed.plan.plan import choose, own_precision
from forefed.run.record import read_json
from forefed.sharing import Ranks, Sharing

PLAN = "plan.json"
Planner = Callable[[Scene], Plan]


def measure_now(scene: Scene) -> Plan:
    """A plan in the precision that the run has anyway."""
    return plan(scene, precisions=(own_precision(scene),))


@dataclass(frozen=True)
class Engines:
    """The engine of every client: a function of the run's key and the client's number."""

    key: Key
    groups: tuple[tuple[float, Way], ...]
    """Shares of the clients, and their engines with the directions along which these walk."""
    spare: int | None = None
    """Bytes that the tightest budget leaves beside weights and step (None: there is no budget)."""
    ranks: tuple[int, ...] = ()
    """Of the groups' adapters, where those are planned (``sharing.ranks = "auto"``)."""
    costs: tuple[tuple[int, int], ...] = ()
    """Instead, where sites say their memory themselves: ranks from the largest down, and the bytes
    of a step in each."""

    def of(self, client: int) -> Way:
        return self.groups[self.group(client)][1]

    def sharing(self, configured: Sharing) -> Sharing:
        """What is shared, with the ranks that were planned."""
        if not isinstance(configured, Ranks):
            return configured
        if self.costs:
            return configured.costing(self.costs)
        if not self.ranks:
            return configured
        return configured.planned(lambda client: self.ranks[self.group(client)])

    def group(self, client: int) -> int:
        """The number of the client's group, the same in every round."""
        if len(self.groups) == 1:
            return 0
        drawn = float(self.key.fold("memory", client).uniform((1,)))
        for number, (share, _) in enumerate(self.groups):
            drawn -= share
            if drawn < 0:
                return number
        return len(self.groups) - 1


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
    if by_sites(config):
        return _at_sites(config, units, data, planner, say)
    if not isinstance(config.engine, Auto):
        return kept_engines(config)
    scene = scene_of(config, units, data)
    asked = {
        "scene": scene.model_dump(mode="json"),
        "memory": [budget.model_dump(mode="json") for budget in config.memory],
        **({"ranks": "auto"} if getattr(config.sharing, "ranks", ()) == "auto" else {}),
    }

    def measured() -> Json:
        say("planning: measuring this machine (plan.json keeps the result)")
        if isinstance(config.sharing, Ranks) and config.sharing.ranks == "auto":
            groups, found = _by_rank(scene, config.memory, planner)
        else:
            found = planner(scene)
            groups = [_group(found, budget) for budget in config.memory or (None,)]
        return {"groups": groups, "plan": found.to_json()}

    for group in _planned(config, asked, measured)["groups"]:
        rank = f"rank {group['rank']}, " if "rank" in group else ""
        say(f"{group['memory']}: {rank}{group['engine']['kind']}; {group['reason']}")
    engines = kept_engines(config)
    sharing = config.sharing
    if engines.ranks:
        sharing = sharing.model_copy(update={"ranks": engines.ranks})
    for _, way in engines.groups:
        chosen = {"engine": way.engine, "directions": way.directions, "sharing": sharing}
        check(config.model_copy(update={**chosen, "memory": ()}))
    return engines


def kept_engines(config: Config) -> Engines:
    """The engines of a run that has begun, without measuring.

    Raises:
        UserError: plan.json is missing or damaged.
    """
    key = Key(config.seed)
    if not isinstance(config.engine, Auto):
        simulated = config.partition.kind != "sites"
        engine = config.engine.among(simulated, config.directions)
        costs = read_json(config.folder / PLAN)["costs"] if by_sites(config) else []
        whole = ((1.0, Way(engine=engine, directions=config.directions)),)
        return Engines(key, whole, costs=tuple((int(rank), int(cost)) for rank, cost in costs))
    groups = read_json(config.folder / PLAN)["groups"]
    spare = [g["spare"] for g in groups if g["spare"] is not None]
    ways = tuple((g["share"], kept_way(g, config.directions)) for g in groups)
    ranks = tuple(int(g["rank"]) for g in groups if "rank" in g)
    return Engines(key, ways, min(spare, default=None), ranks)


def by_sites(config: Config) -> bool:
    """Do ranks go by what sites say of their memory?"""
    return config.partition.kind == "sites" and config.sharing.by_memory


def _at_sites(
    config: Config,
    units: tuple[Unit, ...],
    data: Prepared,
    planner: Planner,
    say: Callable[[str], None],
) -> Engines:
    """The engines of a run between machines, with what its engine's step takes at every rank; of
    texts as long as the sites may have, at the micro-batch that takes most.

    Raises:
        UserError: an engine that the planner does not measure.
    """
    scene = scene_of(config, units, data)
    asked = {"scene": scene.model_dump(mode="json"), "engine": config.engine.kind, "ranks": "sites"}

    def measured() -> Json:
        say("planning: measuring what a step takes at every rank (plan.json keeps the result)")
        costs = []
        for rank in ladder(scene):
            rows = planner(at_rank(scene, rank)).rows
            totals = [row.total for row in rows if row.engine.kind == config.engine.kind]
            if not totals:
                raise UserError(
                    f"sharing.ranks = 'auto': what engine.kind = '{config.engine.kind}' takes is "
                    "not measured; name the ranks (sharing.ranks = [4, 8]), or another engine"
                )
            costs.append((rank, max(totals)))
        return {"costs": costs}

    _planned(config, asked, measured)
    return kept_engines(config)


def _planned(config: Config, asked: Json, measured: Callable[[], Json]) -> Json:
    """What plan.json keeps; measured where there is none, or a start of other settings left it."""
    path = config.folder / PLAN
    kept: Json = read_json(path) if path.exists() else {}
    if kept.get("asked") != asked:
        kept = {"asked": asked, **measured()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    return kept


def ladder(scene: Scene) -> list[int]:
    """The adapter's rank, its half and so on, down to 1."""
    most = int(scene.adapter.r)  # type: ignore[attr-defined]  # sharing wants LoRA
    return [most >> halved for halved in range(most.bit_length())]


def at_rank(scene: Scene, rank: int) -> Scene:
    adapter = scene.adapter.model_copy(update={"r": rank})
    return scene.model_copy(update={"adapter": adapter})


def kept_way(group: dict[str, Any], directions: Directions) -> Way:
    """What plan.json says of a group of clients: the engine, and how many directions of the
    configured kind it takes.

    Raises:
        UserError: unit vectors, where the configuration draws from a pool or candidates.
    """
    named: dict[str, Any] = {n: group[n] for n in ("engine", "directions") if n in group}
    found = present(canonical(named, Config))
    engine = ENGINES.parse(found["engine"])
    planned = DIRECTIONS.parse(found.get("directions", "fresh"))
    chosen = engine.estimates and planned.exact
    if chosen and not (directions.exact or isinstance(directions, Fresh)):
        raise UserError(
            f"directions.kind = '{directions.kind}': the planner has chosen unit vectors, so there "
            "is nothing to draw; set engine.kind, or directions.kind = 'fresh'"
        )
    k = getattr(planned, "k", None) if engine.estimates else getattr(directions, "k", None)
    return Way(engine=engine, directions=taking(directions, k, chosen))


def _by_rank(
    scene: Scene, memory: Sequence[Budget], planner: Planner
) -> tuple[list[dict[str, Any]], Plan]:
    """Of every group the largest rank with which an exact gradient fits; the smallest, and what
    fits then, where none does. Also the plan of the whole rank.

    Raises:
        UserError: a budget in which nothing works.
    """
    plans: dict[int, Plan] = {}

    def plan_of(rank: int) -> Plan:
        if rank not in plans:
            plans[rank] = planner(at_rank(scene, rank))
        return plans[rank]

    ranks = ladder(scene)
    groups = []
    for budget in memory:
        fitting = (
            rank
            for rank in ranks
            if any(not r.noise and r.total <= budget.budget for r in plan_of(rank).rows)
        )
        rank = next(fitting, ranks[-1])
        groups.append({"rank": rank, **_group(plan_of(rank), budget)})
    return groups, plan_of(ranks[0])


def _group(found: Plan, budget: Budget | None) -> dict[str, Any]:
    row, reason = choose(found.rows, budget.budget if budget else None)
    return {
        "memory": format_bytes(budget.budget) if budget else "no limit",
        "share": budget.share if budget else 1.0,
        **row.way.model_dump(mode="json"),
        "total": row.total,
        "spare": budget.budget - row.total if budget else None,
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
    longest = int(train.lengths().max())
    if config.partition.kind == "sites":  # whose texts nobody else knows
        outputs = objective_of(data.label_names, config.data.task.head).outputs
        limit = longest_text(load_config(config.model, outputs))
        longest = min(config.data.max_length, limit or config.data.max_length)
    return Scene(
        model=config.model,
        adapter=config.adapter,
        labels="spans"
        if config.data.task.head == "spans"
        else objective_of(data.label_names, config.data.task.head).outputs,
        batch=max(len(data.population.client(i).train) for i in shown) if size == "all" else size,
        seq=longest,
        units=most or None,
    )
