"""Run folders as the run package writes them, with made-up but plausible numbers."""

import json
import math
from pathlib import Path

import numpy as np

from forefed.models.objectives import OBJECTIVES

LABELS = ["World", "Sports", "Business", "Sci/Tech"]


def record(
    folder: Path,
    *,
    rounds: int = 20,
    planned: int | None = None,
    name: str | None = None,
    strategy: str = "spry",
    top: float = 0.8,
    up: int = 900,
    down: int = 42_000,
    forwards: float = 3_200.0,
    peak: int | None = 14_000_000,
    lm: bool = False,
    clients: int = 12,
    labels: list[str] = LABELS,
    alpha: float = 0.3,
    lost: float = 0.0,
    own: bool = False,
    majority: float = 0.27,
    settings: dict | None = None,
    details: dict | None = None,
    baseline: dict | None = None,
) -> Path:
    """A run folder; finished unless ``planned`` exceeds ``rounds``.

    ``details`` of the last evaluation, with which the record states its metrics; ``baseline``: more
    of what costs less.
    """
    planned = rounds if planned is None else planned
    folder.mkdir(parents=True)
    draws = np.random.default_rng(len(strategy) + rounds)
    config = {
        "name": name or folder.name,
        "out": "runs",
        "seed": 0,
        "rounds": planned,
        "cohort": 8,
        "deadline_s": None,
        "strategy": {"name": strategy},
        "model": {"name": "minilm", "dtype": "float32"},
        "adapter": {"kind": "tiny_lora", "u": 16},
        "data": {"source": {"kind": "files", "path": "news.jsonl"}, "max_length": 64},
        "partition": {"kind": "dirichlet", "clients": clients, "alpha": alpha},
        "engine": {"kind": "forward", "k": 16, "law": "rademacher"},
        "client": {"kind": "local", "optimiser": {"kind": "sgd", "lr": 0.1}, "batch_size": 8},
        "modifiers": [{"kind": "clip", "norm": 1.0}],
        "codec": {"kind": "scalars"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "yogi", "lr": 0.05},
        "faults": {"crash": lost, "offline": 0.0},
        "evaluate": {"every": 2, "batch_size": 32, "clients": 5 if own else 0},
        **(settings or {}),
    }
    environment = {
        "forefed": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "peft": "0.21.0",
        "python": "3.11.2",
        "platform": "Linux-6.1-x86_64",
        "processor": "Some Processor 2.5 GHz",
        "cores": 2,
        "threads": 2,
        "data": {"source": "files", "digest": "5e1f", "counts": {"examples": 4800, "empty": 0}},
        "model": {
            "name": "minilm",
            "dtype": "float32",
            "parameters": 22_713_984,
            "trainable": 2_308,
            "units": [["head", 6, 1540], ["block.0", 0, 64]],
            "weights_bytes": 90_855_936,
        },
        "majority": None if lm else majority,
    }
    names = [] if lm else labels
    counts = np.zeros((clients, 0 if lm else len(names)), int)
    sizes = 1 + draws.geometric(0.01, clients)
    if not lm:
        shares = draws.dirichlet([alpha] * len(names), clients)
        counts = np.array([draws.multinomial(n, p) for n, p in zip(sizes, shares, strict=True)])
    partition = {
        "kind": "dirichlet",
        "clients": clients,
        "labels": names,
        "sizes": sizes.tolist(),
        "counts": counts.tolist(),
        "shown": clients,
    }
    for file, value in (
        ("environment.json", environment),
        ("partition.json", partition),
        ("config.json", config),
    ):
        (folder / file).write_text(json.dumps(value))
    lines, tests = [], []
    for number in range(rounds + 1):
        rise = 1 - math.exp(-3 * number / planned)
        if number:
            gone = int((draws.random(8) < lost).sum())
            clients_s = 4 + draws.random()
            tested = 1.1 if number % 2 == 0 else 0.0
            lines.append(
                {
                    "round": number,
                    "loss": 1.4 - rise + 0.1 * draws.random(),
                    "bytes_up": up * (8 - gone),
                    "bytes_down": down * 8,
                    "seconds": {
                        "plan": 0.02,
                        "clients": clients_s,
                        "aggregate": 0.4,
                        "evaluate": tested,
                        "total": clients_s + tested + 0.6,
                    },
                    "forwards": forwards,
                    "memory": {"peak_above_weights": peak, "rss": 700_000_000 + number},
                    "cohort": draws.choice(clients, 8, replace=False).tolist(),
                    "replies": 8 - gone,
                    "steps": 64,
                    "lost": {"crash": gone} if gone else {},
                    "skipped": 1 if number == 3 else 0,
                }
            )
        if number % 2 == 0 or number == planned:
            score = 0.25 + (top - 0.25) * rise
            for split, minus in (("test", 0.0), ("clients", 0.04))[: 2 if own else 1]:
                value = (
                    {"bits_per_byte": 3.48 - 0.8 * rise + minus}
                    if lm
                    else {"accuracy": round(score - minus, 4)}
                )
                tests.append(
                    {"round": number, "split": split, "loss": 1.4 - rise, **value, "n": 2000}
                )
    if details is not None:
        measures = OBJECTIVES["classification"].measures
        (folder / "environment.json").write_text(
            json.dumps({**environment, "measures": measures.to_json()})
        )
        (folder / "details.json").write_text(json.dumps({"round": rounds, **details}))
        for line in tests:
            line |= {"macro_f1": 0.5, "low": line["accuracy"] - 0.02}
            line["high"] = line["accuracy"] + 0.02
            if line["split"] == "clients":
                line |= {"clients": 5, "client_mean": 0.6, "client_worst": 0.2}
                line |= {"client_decile": 0.3}
    write_lines(folder / "rounds.jsonl", lines)
    write_lines(folder / "evaluations.jsonl", tests)
    if rounds == planned:
        scored = [line for line in tests if line["split"] == "test"]
        summary = {
            "status": "finished",
            "rounds": rounds,
            "digest": "ab12",
            "baseline": {
                **(baseline or {}),
                "majority": None if lm else majority,
                "untrained": scored[0].get("accuracy", scored[0].get("bits_per_byte")),
            },
            "final": scored[-1],
            "best": scored[-1],
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
