"""The audit on a terminal, and in the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from forefed.audit.finding import Finding
from forefed.core.files import write_json
from forefed.core.terminal import styled
from forefed.run.record import AUDIT

if TYPE_CHECKING:
    from forefed.audit.audit import Audit


def audit_page(found: Audit) -> Group:
    """Table, worst cases in words, remedies."""
    about = found.about
    title = (
        f"what the server learns: {about['strategy']} on {about['model']}, {about['rows']} of "
        f"{about['tokens']} tokens, {about['trials']} messages each"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("step", "what is attacked", "client"):
        table.add_column(name, no_wrap=name == "step")
    for name in ("success", "95 %", "a guess"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.findings:
        table.add_row(*cells(one), style="bold" if one.leaks else "dim")
    lines = [styled(f"- {text}") for text in found.sentences()]
    remedies = [styled(f"- {text}") for text in found.to_json()["remedy"]]
    notes = [styled((f"note: {text}", "yellow")) for text in found.notes]
    head = "worst cases:" if lines else "no attack did better than a guess on these trials"
    return Group(
        table,
        "",
        styled((head, "bold")),
        *lines,
        styled(("what helps:", "bold")),
        *remedies,
        *notes,
    )


def cells(one: Finding) -> tuple[str, ...]:
    """A row of the table."""
    where = f"{one.client}, round {one.client.round}" if one.client.steps else str(one.client)
    if one.measure == "cosine":
        return (
            *(one.step, one.attack, where, f"cosine {one.value:.2f}"),
            *(f"{one.low:.2f}..{one.high:.2f}", f"{one.chance:.2f}"),
        )
    return (
        *(one.step, one.attack, where, f"{one.value:.0%}"),
        *(f"{one.low:.0%}..{one.high:.0%}", f"{one.chance:.0%}"),
    )


def keep(found: Audit, folder: Path) -> Path:
    """Write it into the folder of a run."""
    write_json(folder / AUDIT, found.to_json())
    return folder / AUDIT
