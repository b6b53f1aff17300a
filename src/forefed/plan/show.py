"""A plan as a table for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from forefed.core.sizes import format_bytes
from forefed.gradients.engine import SlopeEngine
from forefed.plan.plan import Plan, Row


def plan_page(plan: Plan) -> RenderableType:
    """Facts, table, what a smaller adapter would change, and the advice."""
    return Group(_facts(plan), _table(plan), *(Text(s) for s in plan.smaller), _advice(plan))


def advice(plan: Plan) -> str:
    """The recommendation in one sentence."""
    row = plan.recommended
    return f"Take {row.name} ({row.rows}, {row.precision}): {plan.reason}."


def settings_of(row: Row) -> list[str]:
    """The ``--set`` settings of a row, with those in which a strategy has defaults of its own."""
    changed = row.engine.model_dump(mode="json", exclude_defaults=True)
    if isinstance(row.engine, SlopeEngine):
        changed["directions"] = row.engine.directions
    if row.engine.micro_batch is None:
        changed["micro_batch"] = "all"
    sets = [f"engine={row.engine.kind}"]
    sets += [f"engine.{name}={value}" for name, value in changed.items() if name != "kind"]
    if row.precision.startswith("int"):
        sets.append(f"model.quantise={row.precision}")
    return sets


def _facts(plan: Plan) -> RenderableType:
    scene = plan.scene
    weights = ", ".join(f"{p} {format_bytes(n)}" for p, n in plan.weights.items())
    budget = "none" if plan.memory is None else format_bytes(plan.memory)
    return Text.assemble(
        (f"{scene.model.name}", "bold"),
        f", {plan.blocks} blocks; batch {scene.batch} x {scene.seq} tokens; ",
        f"one client trains {plan.elements:,} adapter elements ({scene.place}) and "
        f"{plan.head_elements:,} of the head\n",
        f"weights: {weights}; plain inference: {plan.inference_seconds * 1000:.0f} ms and "
        f"{format_bytes(plan.inference_peak)} above them\n",
        f"budget: {budget}, for weights and step; Python and its libraries take another "
        f"{format_bytes(plan.base_rss)} (RSS shows all)\n",
    )


def _table(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", caption=_LEGEND, caption_justify="left")
    table.add_column("engine", no_wrap=True)
    table.add_column("rows")
    table.add_column("weights")
    for title in ("above", "total", "RSS", "time", "noise", "to progress", "forwards", "bytes up"):
        table.add_column(title, justify="right")
    extrapolated = any(r.error for r in plan.rows)
    if extrapolated:
        table.add_column("± above", justify="right")
    for row in plan.rows:
        fits = plan.memory is None or row.total <= plan.memory
        style = "bold green" if row is plan.recommended else None if fits else "dim"
        cells = [
            ("→ " if row is plan.recommended else "  ") + row.name,
            row.rows,
            row.precision,
            format_bytes(row.peak),
            format_bytes(row.total),
            format_bytes(row.rss),
            f"{row.time:.2f}",
            f"{row.noise:.3g}",
            f"{row.progress_time:.3g}",
            f"{row.forwards * (1 + row.noise):,.0f}",
            format_bytes(row.bytes_up * (1 + row.noise)),
        ]
        table.add_row(*cells, *([f"{row.error:.0%}"] if extrapolated else []), style=style)
    return table


_LEGEND = (
    "above: live bytes above the weights, at most; total: with them; dim: does not fit. time: of a "
    "step, over plain inference. noise: relative variance of the estimate. to progress, forwards "
    "(per example), bytes up: for the progress of one exact step."
)


def _advice(plan: Plan) -> RenderableType:
    sets = " ".join(f"--set {s}" for s in settings_of(plan.recommended))
    return Text.assemble("\n", (advice(plan), "bold"), f"\nforefed run {sets}\n")
