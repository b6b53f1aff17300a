"""The demo: SPRY on the standard library's docstrings, in a few minutes on two cores."""

from __future__ import annotations

from typing import Any

from forefed.run.run import Result

DEMO: dict[str, Any] = {
    "name": "demo",
    "strategy": {"name": "spry"},
    "rounds": 160,
    "cohort": 8,
    "adapter": {
        "kind": "tinylora",
        "r": 4,
        "u": 16,
        "targets": "qv-and-outputs",
        "layers": "last:1",
    },
    "assign": {"kind": "contiguous", "copies": 1},
    "engine": {"kind": "forward", "directions": 4},
    "codec": {"kind": "dense"},
    "client": {
        "max_steps": 1,
        "batch_size": 16,
        "optimiser": {"kind": "sgd", "lr": 1.0, "head_lr": 3.0},
    },
    "server": {"kind": "adam", "lr": 1e-2, "head_lr": 0.14},
    "server_schedule": "linear",
    "data": {"source": {"kind": "pydocs"}, "max_length": 48},
    "partition": {"kind": "dirichlet", "clients": 40, "alpha": 2.0},
    "evaluate": {"every": 40},
}


def next_steps(result: Result) -> str:
    """Where the report is, and three commands to try next."""
    folder = result.folder
    return (
        f"report: {folder / 'report.html'}\n\n"
        "Try next:\n"
        f'  forefed predict {folder} "Send a mail message to the SMTP server."\n'
        f"  forefed run --set strategy=fedavg --set name=fedavg --set rounds=10\n"
        f"  forefed report {folder} runs/fedavg -o compare.html"
    )
