"""`python -m benchmarks.speakers`: personal, common and local language models of speakers.

The eight speakers of Shakespeare with the most speeches, 40 of each, a fifth of which is held out
at the speaker; the Llama of 260,032 parameters, LoRA of r = 8 on all linear layers, 64 tokens a
text, 8 rounds of all speakers, one epoch of batches of 8, AdamW at 3e-3, which the study `speakers`
has for FedAvg and which was tuned for none of them here. Bits per byte of the speakers' held-out
speeches, lower is better: with the common model, and with each speaker's own.

Cells are kept in compare/speakers.jsonl; what is there is not run again.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cells
from benchmarks.table import markdown
from forefed.core.keys import Key
from forefed.run import configure, run

SPEAKERS, SPEECHES, ROUNDS, SEEDS = 8, 40, 8, 3
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"strategy": "fedavg"},
    "local only": {"strategy": "fedavg", "sharing": "local_only"},
    "FedAvg, then fine-tuned": {"strategy": "fedavg", "sharing": {"kind": "fine_tune", "after": 5}},
    "FedSA-LoRA": {"strategy": "fedsa_lora"},
    "best of three": {"strategy": "best_of_three"},
}


def speeches(folder: Path, seed: int) -> Path:
    """A file of the speeches that are used, in ``folder``."""
    by_speaker = defaultdict(list)
    place = Path(os.environ["FOREFED_DATA"]) / "shakespeare" / "speeches.jsonl.gz"
    with gzip.open(place, "rt", encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            if len(row["text"]) > 80:
                by_speaker[f"{row['play']}: {row['character']}"].append(row["text"])
    most = Counter({name: len(texts) for name, texts in by_speaker.items()}).most_common(SPEAKERS)
    file = folder / "speeches.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for name, count in most:
            for i in Key(seed).fold(name).permutation(count)[:SPEECHES]:
                out.write(json.dumps({"speaker": name, "text": by_speaker[name][i]}) + "\n")
    return file


def measured(method: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = Path(os.environ["FOREFED_DATA"]) / "stories260k" / "hf"
        base = {
            "name": "run",
            "out": str(folder),
            "seed": seed,
            "start": "none",
            "guard": "none",
            "rounds": ROUNDS,
            "cohort": SPEAKERS,
            "model": {"name": str(model), "dtype": "float32"},
            "adapter": {"kind": "lora", "r": 8, "targets": "all-linear"},
            "data": {
                "max_length": 64,
                "client_test_fraction": 0.2,
                "task": {"kind": "causal_lm", "text": "text"},
                "source": {"kind": "files", "path": str(speeches(folder, seed))},
            },
            "partition": {"kind": "natural", "column": "speaker"},
            "client": {"batch_size": 8, "optimiser": {"kind": "adamw", "lr": 3e-3}},
            "evaluate": {"every": ROUNDS, "clients": SPEAKERS},
            **METHODS[method],
        }
        result = run(configure(base=base))
        tests = [json.loads(x) for x in (result.folder / "evaluations.jsonl").open()]
        rounds = [json.loads(x) for x in (result.folder / "rounds.jsonl").open()]
        each = json.loads((result.folder / "clients.json").read_text())["clients"]
    last = {t["split"]: t for t in tests if t["round"] == ROUNDS}
    own = "personal" if "personal" in last else "clients"
    return {
        "before": next(t["bits_per_byte"] for t in tests if t["split"] == "clients"),
        "common": last["clients"]["bits_per_byte"],
        "own": last[own]["bits_per_byte"],
        "worst": last[own]["client_worst"],
        "worse": sum(e[own] > e["clients"] for e in each),
        "up": int(np.mean([r["bytes_up"] for r in rounds]) / SPEAKERS),
    }


def kept(method: str, seed: int) -> dict[str, Any]:
    """The cell, from compare/speakers.jsonl or run now."""
    return cells.kept("speakers", [method, seed], lambda: measured(method, seed))


def tables() -> Iterator[tuple[str, str]]:
    body = []
    for method in METHODS:
        found = [kept(method, s) for s in range(SEEDS)]
        mean = {x: float(np.mean([f[x] for f in found])) for x in found[0]}
        by_seed = ", ".join(f"{f['own']:.3f}" for f in found)
        body.append(
            [
                method,
                f"{mean['own']:.3f}",
                by_seed,
                f"{mean['common']:.3f}",
                f"{mean['worst']:.3f}",
                f"{mean['up'] / 1e3:.1f}",
            ]
        )
    heads = ["method", "own model", "by seed", "common model", "worst client", "kB up"]
    yield f"Speakers, bits per byte, {SEEDS} seeds", markdown(heads, body)


if __name__ == "__main__":
    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    for seed in range(SEEDS):
        for method in METHODS:
            print(method, seed, kept(method, seed), flush=True)
    for title, table in tables():
        print(f"\n{title}\n\n{table}")
