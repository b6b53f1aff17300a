"""The demo: the defaults on the standard library's docstrings, in minutes on two cores."""

from __future__ import annotations

from typing import Any

from forefed.run.summary import Result

DEMO: dict[str, Any] = {
    "name": "demo",
    "rounds": 4,
    "data": {"source": {"kind": "pydocs"}, "max_length": 48, "limit": 2500},
    "start": {"kind": "auto", "batch_size": 16},
    "partition": {"kind": "dirichlet", "clients": 40, "alpha": 2.0},
    "evaluate": {"every": 2},
}
"""Which rows and how long; all else is as a run without a configuration has it. (One row at a
time, as it comes, the start takes thrice as long; the bits of the head then depend on who holds
which row.)"""


def next_steps(result: Result) -> str:
    """Where the report is, and three commands to try next."""
    folder = result.folder
    return (
        f"report: {folder / 'report.html'}\n\n"
        "Try next:\n"
        f'  forefed predict {folder} "Send a mail message to the SMTP server."\n'
        f"  forefed run --set strategy=spry --set name=spry --set rounds=10\n"
        f"  forefed report {folder} runs/spry -o compare.html"
    )
