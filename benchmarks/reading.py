"""Reading, tokenising and dividing 200,000 rows: processor seconds and memory above the libraries.

Each measurement has a process of its own, so that peaks do not add up. The tokeniser has whole
words, so what is measured is our part more than its.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.table import markdown

ROWS = 200_000
WORDS = [f"w{i}" for i in range(500)]
KINDS = {
    "12 words, 100 Dirichlet clients": (12, "dirichlet"),
    "12 words, 20,000 owners": (12, "natural"),
    "200 words, 100 Dirichlet clients": (200, "dirichlet"),
}


def tables() -> Iterator[tuple[str, str]]:
    rows = []
    for what, (words, partition) in KINDS.items():
        command = [sys.executable, "-m", "benchmarks.reading", str(words), partition, str(ROWS)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(said.splitlines()[-1])
        rows.append([what, f"{found['seconds']:.1f}", f"{found['megabytes']:.0f}"])
    heads = [f"{ROWS:,} rows of a CSV", "processor seconds", "MB above the libraries"]
    yield "Reading", markdown(heads, rows)


def measure(words: int, partition: str, n: int) -> dict[str, float]:
    """Processor seconds and peak memory of ``prepare``."""
    from forefed.core.keys import Key
    from forefed.data.prepare import prepare
    from forefed.run import configure

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w") as file:
            file.write("text,label,owner\n")
            for i in range(n):
                text = " ".join(WORDS[(i * 31 + k * k) % 500] for k in range(words))
                file.write(f"{text},{'abcd'[i % 4]},o{i * 7919 % max(2, n // 10)}\n")
        more = ["partition.column=owner"] if partition == "natural" else ["partition.clients=100"]
        sets = [f"data.source.path='{path}'", "data.source.kind=files", f"partition={partition}"]
        config = configure(sets=[*sets, *more])
        tok = tokenizer()
        tok(["w1 w2"])
        libraries()
        before, start = peak(), time.process_time()
        prepare(config.data, config.partition, tok, Key(0), None)
        return {"seconds": time.process_time() - start, "megabytes": peak() - before}


def libraries() -> None:
    """What reading imports, loaded: pyarrow looks for pandas at its first array (30 MB of it, where
    another package has brought it; this one does not need it)."""
    import pyarrow
    import pyarrow.compute

    pyarrow.array(["x"]).cast(pyarrow.large_string())


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
