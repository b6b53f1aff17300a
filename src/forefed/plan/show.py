"""A plan as a table for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from forefed.config.advice import advised
from forefed.core.sizes import format_bytes, format_duration
from forefed.plan.plan import Plan, Row

WIDE = 120
"""Characters from which on the table shows all columns."""


def plan_page(plan: Plan, width: int = WIDE) -> RenderableType:
    """Facts, table, what a smaller adapter would change, and the advice."""
    table = _table(plan, width >= WIDE)
    return Group(_facts(plan), table, *(Text(s) for s in plan.smaller), _advice(plan))


def advice(plan: Plan) -> str:
    """The recommendation in one sentence."""
    row = plan.recommended
    return f"Take {row.name} ({row.rows}, {row.precision}): {plan.reason}."


def settings_of(row: Row) -> list[str]:
    """The ``--set`` settings of a row, with those in which a strategy has defaults of its own."""
    changed = row.engine.model_dump(mode="json", exclude_defaults=True)
    if row.engine.micro_batch is None:
        changed["micro_batch"] = "all"
    sets = [f"engine={row.engine.kind}"]
    sets += [f"engine.{name}={value}" for name, value in changed.items() if name != "kind"]
    if row.engine.estimates:
        k = getattr(row.directions, "k", None)
        sets += [f"directions={row.directions.kind}"] if k is None else [f"directions.k={k}"]
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
        f"weights: {weights}; plain inference: {format_duration(plan.inference_seconds)} and "
        f"{format_bytes(plan.inference_peak)} above them\n",
        f"budget: {budget}, for weights and step; Python and its libraries take another "
        f"{format_bytes(plan.base_rss)} (RSS shows all)\n",
    )


def _table(plan: Plan, wide: bool) -> Table:
    legend = _LEGEND if wide else f"{_LEGEND} A terminal of {WIDE} columns shows {_MORE} too."
    table = Table(
        box=None, padding=(0, 1, 0, 0), header_style="bold", caption=legend, caption_justify="left"
    )
    table.add_column("engine", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    titles = ["above", "total", "time", "noise", "progress"]
    extrapolated = any(r.error for r in plan.rows)
    titles += ["RSS", "forwards", "bytes up"] if wide else []
    titles += ["± above"] if wide and extrapolated else []
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in plan.rows:
        fits = plan.memory is None or row.total <= plan.memory
        style = "bold green" if row is plan.recommended else None if fits else "dim"
        more = (
            format_bytes(row.rss),
            f"{row.forwards * (1 + row.noise):,.0f}",
            format_bytes(row.bytes_up * (1 + row.noise)),
            f"{row.error:.0%}",
        )
        cells = (
            ("→ " if row is plan.recommended else "  ") + row.name.replace(", K = ", " K="),
            str(row.engine.micro_batch or "all"),
            row.precision,
            format_bytes(row.peak),
            format_bytes(row.total),
            f"{row.time:.2f}",
            f"{row.noise:.3g}",
            f"{row.progress_time:.3g}",
        )
        table.add_row(*(cells + more)[: len(table.columns)], style=style)
    return table


_MORE = "resident memory, forwards, bytes up and the error of extrapolation"
_LEGEND = (
    "rows: of a micro-batch. above: live bytes above the weights, at most; total: with them; dim: "
    "does not fit. time: of a step, over plain inference. noise: relative variance of an estimate. "
    "progress (time), forwards (per example), bytes up: for the progress of one exact step."
)


def _advice(plan: Plan) -> RenderableType:
    sets = " ".join(f"--set {s}" for s in settings_of(plan.recommended))
    taken = advised({"memory": plan.memory} if plan.memory else {})
    strategy = f"A run that names no strategy takes {taken.name}: {taken.because}."
    return Text.assemble("\n", (advice(plan), "bold"), f"\nforefed run {sets}\n{strategy}\n")
