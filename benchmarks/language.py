"""`python -m benchmarks.language [PART ...]`: SmolLM2 without a new head, on real text.

``trec`` and ``sst2``: classes as words (`choice`), by FedAvg and by zeroth order (`fedmezo`, 16
directions a step, emulated). ``medquad``: the nine sources of MedQuAD as nine sites that learn to
answer (`generate`): each alone, FedAvg, SPRY; tested on each site's own held-out rows.

Small on purpose: short texts, few rows, one seed, rates that were not tuned. Cells are kept in
compare/language.jsonl; what is there is not run again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import cells
from benchmarks.first_model import read
from forefed.core.keys import Key
from forefed.run import configure, run

MODEL = ("model={name='smollm2', dtype='bfloat16'}", "start=none", "guard=none")
LORA = "adapter={kind='lora', r=8, alpha=16}"
CHOICE: dict[str, dict[str, Any]] = {
    "trec": {
        "test": "test",
        "field": "fine",
        "prompt": "Question: {text}\nThe answer is a",
        "words": {
            "ABBR": "abbreviation",
            "DESC": "description",
            "ENTY": "thing",
            "HUM": "person",
            "LOC": "place",
            "NUM": "number",
        },
    },
    "sst2": {
        "test": "dev",
        "field": "label",
        "prompt": "{text} It was",
        "words": {"0": "terrible", "1": "great"},
    },
}
ROWS, TESTS = 240, 200
FEDAVG = ("strategy=fedavg", LORA, "rounds=4", "client.max_steps=4", "client.optimiser.lr=1e-3")
ZEROTH = (
    *("strategy=fedmezo", LORA, "rounds=8", "client.max_steps=2", "directions.k=16"),
    *("engine={emulate=true, eps=1e-2}", "client.optimiser.lr=1e-3"),
)
WAYS = {"FedAvg": FEDAVG, "zeroth order": ZEROTH}


def choice(name: str, way: str) -> dict[str, Any]:
    about = CHOICE[name]
    key = Key(0).fold(name)
    with tempfile.TemporaryDirectory() as folder:
        for part, most in (("train", ROWS), (about["test"], TESTS)):
            rows = read(f"{name}/{part}", ("text",), about["field"])
            some = key.fold(part).permutation(len(rows))[:most]
            texts = [(rows[i][0][0], rows[i][1].partition(":")[0]) for i in some]
            write(folder, part, [{"text": text, "label": label} for text, label in texts])
        train, test = (f"{folder}/{part}.jsonl" for part in ("train", about["test"]))
        data = f"{{kind='files', path='{train}', test='{test}'}}"
        words = ", ".join(f"{label} = '{word}'" for label, word in about["words"].items())
        task = f"{{kind='choice', prompt={json.dumps(about['prompt'])}, words={{{words}}}}}"
        sets = (f"data.source={data}", f"data.task={task}", "data.max_length=48")
        more = ("partition.clients=4", "cohort=4", "client.batch_size=8")
        found = ended(folder, *WAYS[way], *sets, *more)
    before, after = (line for line in found["lines"] if line["split"] == "test")
    return {
        "before": before["accuracy"],
        "after": after["accuracy"],
        "low": after["low"],
        "high": after["high"],
        "up": found["up"],
    }


SITE_ROWS, OWN_TESTS = 15, 1 / 3
SOURCES: dict[str, tuple[str, ...]] = {
    "alone": (*FEDAVG[:2], "sharing=local_only"),
    "FedAvg": FEDAVG[:2],
    "SPRY": ("strategy=spry", "codec.kind=dense"),
}


def medquad(way: str) -> dict[str, Any]:
    by_source = defaultdict(list)
    for (prompt, text), source in read("medquad/qa", ("prompt", "text"), "source"):
        asked = prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
        if 60 <= len(text) <= 300 and len(asked) <= 100:
            by_source[source].append({"prompt": asked, "text": text.strip(), "source": source})
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            by_source[source][i]
            for source in sorted(by_source)
            for i in Key(0).fold(source).permutation(len(by_source[source]))[:SITE_ROWS]
        ]
        write(folder, "rows", rows)
        write(folder, "test", rows[::SITE_ROWS])  # of no account: sites' own rows are the test
        data = f"{{kind='files', path='{folder}/rows.jsonl', test='{folder}/test.jsonl'}}"
        sets = (
            *(f"data.source={data}", "data.max_length=112"),
            "data.task={kind='generate', prompt='prompt', text='text', tokens=48}",
            *("partition={kind='natural', column='source', min_size=2}", "cohort=9", "rounds=3"),
            *(f"data.client_test_fraction={OWN_TESTS}", "evaluate.clients=9"),
            *("client.batch_size=5", "client.optimiser.lr=1e-3"),
        )
        found = ended(folder, *SOURCES[way], *sets)
    return found


def ended(folder: str, *sets: str) -> dict[str, Any]:
    """The tests of a run before its first and after its last round, and what went up."""
    more = (f"out='{folder}/runs'", "name=study", "evaluate.every=99")
    config = configure(sets=[*MODEL, *sets, *more])
    result = run(config)
    place = result.folder
    lines = [json.loads(x) for x in (place / "evaluations.jsonl").read_text().splitlines()]
    rounds = [json.loads(x) for x in (place / "rounds.jsonl").read_text().splitlines()]
    return {"lines": lines, "up": sum(r["bytes_up"] for r in rounds)}


def write(folder: str, name: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (Path(folder) / f"{name}.jsonl").write_text(text)


def measured(part: str, way: str) -> dict[str, Any]:
    made = (lambda: medquad(way)) if part == "medquad" else (lambda: choice(part, way))
    return cells.kept("language", [part, way], made)


if __name__ == "__main__":
    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    torch.set_num_threads(1)
    for part in sys.argv[1:] or [*CHOICE, "medquad"]:
        for way in SOURCES if part == "medquad" else WAYS:
            began = time.process_time()
            print(part, way, measured(part, way), round(time.process_time() - began), flush=True)
