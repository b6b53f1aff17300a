"""Builds the model folders of the input corpus: a tiny model, whole, and then what is said of it.

A table with ``make = "model"``; all fields but ``family`` are changes to a folder that works.

family      of ``tiny_configs`` ("bert" if not said); ``causal = true``: with its output matrix
classes     names of the classes of a trained head; without it (and not causal) the body alone
config      keys of config.json and their values; ``{}`` takes one away
drop        tensors whose names contain one of these are left out
rename      beginnings of tensors' names and what stands there instead ("": all names)
add         tensors of ones, by name, and their shapes
fill        parts of tensors' names and the number that fills them ("nan", "inf", 1e30)
weights     of model.safetensors: "half", "empty", "random", "random numbers",
            "pickled", "lfs", "sharded", "lost shard"
without     files that are deleted
write       files and their text
deep        a file that becomes lists within lists
tokenizer   keys of tokenizer_config.json, as ``config``
tokens      words that the tokeniser knows beyond the embedding
inside      the model is in this folder of the folder
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from federation import tokenizer
from tiny import tiny_model

WEIGHTS = "model.safetensors"


def model(path: Path, table: dict[str, Any]) -> None:
    """The folder of a model."""
    asked = table.get("family", "bert"), table.get("causal", False)
    shutil.copytree(whole(*asked, tuple(table.get("classes", ()))), path)
    if "tokens" in table:
        words = json.loads((path / "tokenizer.json").read_text())
        vocabulary = words["model"]["vocab"]
        vocabulary |= {f"more{i}": len(vocabulary) + i for i in range(table["tokens"])}
        (path / "tokenizer.json").write_text(json.dumps(words))
    for file, changes in (("config.json", "config"), ("tokenizer_config.json", "tokenizer")):
        if changes in table:
            content = json.loads((path / file).read_text()) | table[changes]
            content = {key: x for key, x in content.items() if x != {}}
            (path / file).write_text(json.dumps(content))
    if {"drop", "rename", "add", "fill"} & table.keys():
        tensors = changed_tensors(load_file(path / WEIGHTS), table)
        save_file(tensors, path / WEIGHTS, {"format": "pt"})
    store(path, table.get("weights", ""))
    for file in table.get("without", []):
        (path / file).unlink()
    for file, text in table.get("write", {}).items():
        (path / file).write_text(text)
    if "deep" in table:
        (path / table["deep"]).write_text("[" * 100_000)
    if "inside" in table:
        apart = path.with_name(f"{path.name}-apart")
        path.rename(apart)
        (path / table["inside"]).parent.mkdir(parents=True)
        apart.rename(path / table["inside"])


@cache
def whole(family: str, causal: bool, classes: tuple[str, ...]) -> Path:
    """A folder that works."""
    folder = Path(tempfile.mkdtemp(prefix="forefed-tiny-"))
    made = tiny_model(family, causal, torch.float32, n_labels=max(2, len(classes)))
    if classes:
        made.config.id2label = dict(enumerate(classes))
    headless = not causal and not classes
    (made.base_model if headless else made).save_pretrained(folder)
    tokenizer(types=family == "bert").save_pretrained(folder)
    return folder


def changed_tensors(tensors: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    kept = {n: x for n, x in tensors.items() if not any(d in n for d in table.get("drop", []))}
    for start, instead in table.get("rename", {}).items():
        kept = {
            (instead + n.removeprefix(start) if n.startswith(start) else n): x
            for n, x in kept.items()
        }
    kept |= {n: torch.ones(*shape) for n, shape in table.get("add", {}).items()}
    for part, value in table.get("fill", {}).items():
        hit = [n for n in kept if part in n]
        assert hit, part
        kept |= {n: torch.full_like(kept[n], float(value)) for n in hit}
    return kept


def store(path: Path, how: str) -> None:
    """The weights' file, damaged or in another form."""
    file = path / WEIGHTS
    data = file.read_bytes()
    match how:
        case "":
            return
        case "half":
            file.write_bytes(data[: len(data) // 2])
        case "empty":
            file.write_bytes(b"")
        case "random":
            file.write_bytes(bytes((i * i + 7 * i) % 251 for i in range(4000)))
        case "random numbers":  # the header is whole, the numbers are noise
            size = 8 + int.from_bytes(data[:8], "little")
            noise = bytes((i * i * 31 + i // 3) % 256 for i in range(len(data) - size))
            file.write_bytes(data[:size] + noise)
        case "lfs":
            file.write_text("version https://git-lfs.github.com/spec/v1\nsize 4\n")
        case "pickled":
            torch.save(load_file(file), path / "pytorch_model.bin")
            file.unlink()
        case "sharded" | "lost shard":
            tensors = load_file(file)
            names = sorted(tensors)
            half = math.ceil(len(names) / 2)
            parts = {"model-1.safetensors": names[:half], "model-2.safetensors": names[half:]}
            for part, inside in parts.items():
                save_file({n: tensors[n] for n in inside}, path / part, {"format": "pt"})
            index = {n: part for part, inside in parts.items() for n in inside}
            (path / f"{WEIGHTS}.index.json").write_text(
                json.dumps({"weight_map": index, "metadata": {}})
            )
            file.unlink()
            if how == "lost shard":
                (path / "model-2.safetensors").unlink()
        case _:
            raise AssertionError(how)
