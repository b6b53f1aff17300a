"""``forefed init``: a first configuration for somebody's file, with a reason beside every line.

What can be seen is not asked: columns, task, who could be the clients, what the machine has.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forefed.config.compat import check
from forefed.config.config import configure, read_toml
from forefed.core.errors import UserError, several
from forefed.core.files import write_atomic
from forefed.core.keys import Key
from forefed.core.sizes import format_bytes
from forefed.core.terminal import one_line
from forefed.data.files import format_of
from forefed.data.inspect import Description, Owners, describe
from forefed.data.preview import preview
from forefed.models.gguf import INSTALL

ROUNDS, COHORT = 10, 10
ROWS_OF_A_CLIENT = 50
"""Of simulated clients, where nobody is named in the data."""
FEWEST_ROWS = 4
"""Of two clients, with one held out."""
ROOM = 1_500_000_000
"""Bytes of free memory from which on a backward pass through a small encoder is no question."""
TOKENS = (32, 256)
CHARACTERS_OF_A_TOKEN = 4
TEMPLATE = 48
"""Tokens of what a chat template writes around a question and its answer."""


@dataclass(frozen=True)
class Machine:
    """Free memory in bytes, and what torch computes on."""

    memory: int
    device: str

    @staticmethod
    def here() -> Machine:
        import psutil
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Machine(int(psutil.virtual_memory().available), device)


def write_first(data: Path, test: Path | None, output: Path, machine: Machine) -> str:
    """Look at the data, write the configuration, and say what was found and what to type next.

    Raises:
        UserError: the data cannot be read or hold no texts, or the file exists.
    """
    if output.exists():
        raise UserError(f"{output}: exists already; choose another file (--output)")
    if output.suffix != ".toml" or not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: give a new .toml file in a folder that is there")
    seen, folder = _write(data, test, output, machine)
    return "\n".join([*_seen(seen), "", *_next(seen, output, folder)])


def holds_rows(path: Path) -> bool:
    """Is this somebody's rows, not a configuration nor a run? By suffixes alone."""
    if not path.is_dir():
        return format_of(path) is not None
    return not (path / "config.json").exists() and any(map(format_of, path.iterdir()))


def file_for(data: Path, machine: Machine) -> tuple[Path, str]:
    """The configuration file that goes with rows, and what to say of it.

    It lies in the working directory and is called like the rows. What ``init`` would write is
    written where there is none, so that the next command does the same, and may be edited.

    Raises:
        UserError: the data cannot be read or hold no texts, or the file is of other rows.
    """
    output = Path(f"{_run_name(Path(data.resolve().name.partition('.')[0]))}.toml")
    if not output.exists():
        seen, _ = _write(data, None, output, machine)
        written = f"written: {output} (what was guessed; edit it to have it otherwise)"
        return output, "\n".join([*_seen(seen), written])
    source = read_toml(output).get("data", {}).get("source", {})
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str) or Path(path).expanduser().resolve() != data.resolve():
        raise UserError(
            f"{output} is there already and not of {data}: name the configuration you want, or "
            f"write one, 'forefed init {data} --output other.toml'"
        )
    return output, f"settings: {output}, which was made of these rows before"


def _write(
    data: Path, test: Path | None, output: Path, machine: Machine
) -> tuple[Description, Path]:
    """Writes the file; what the rows seem to be, and where a run of it keeps its record."""
    seen = describe(data, test)
    if seen.rows < FEWEST_ROWS:
        raise UserError(f"{data}: {seen.rows} rows, too few to learn from; give more")
    name = _run_name(output)
    tried = configure(
        base=tomllib.loads("\n".join(first_lines(seen, data, test, name, machine, 1)))
    )
    check(tried)
    there = preview(tried.data, tried.partition, Key(tried.seed).fold("data"), None).clients
    lines = first_lines(seen, data, test, name, machine, there)
    write_atomic(output, "".join(f"{line}\n" for line in lines).encode())
    return seen, tried.folder


def first_lines(
    seen: Description, data: Path, test: Path | None, name: str, machine: Machine, clients: int
) -> Iterator[str]:
    """The lines of the file.

    Args:
        clients: how many there are, where the test rows and rows without a label are taken away.
    """
    owner = seen.owners[0] if seen.owners and seen.owners[0].by_name else None
    yield f"# Made by 'forefed init {one_line(str(data))}'. 'forefed list' explains every choice,"
    yield "# 'forefed check' says what it comes to; what is left out has a default."
    yield _because(f"name = {_toml(name)}", f"the record is kept in runs/{name}")
    yield f"rounds = {ROUNDS}"
    yield _because(f"cohort = {min(COHORT, clients)}", f"of {clients} clients in each round")
    yield from _strategy(machine)
    yield from _model(seen, machine)
    yield ""
    yield "[data]"
    yield _because(f"max_length = {_tokens(seen)}", "tokens; longer texts are cut")
    if seen.unlabelled:
        yield _because('unlabelled = "drop"', f"{seen.unlabelled:,} rows have no label")
    yield ""
    yield "[data.source]"
    yield 'kind = "files"'
    yield f"path = {_toml(str(data))}"
    if test is not None:
        yield f"test = {_toml(str(test))}"
    elif seen.test_rows is None:
        yield _because(
            '# test = "test.csv"', "labelled rows to test on; without, a tenth is held out"
        )
    yield from _task(seen)
    yield from _clients(seen, owner)


def _strategy(machine: Machine) -> Iterator[str]:
    free = format_bytes(machine.memory)
    yield ""
    yield "[strategy]"
    if machine.memory >= ROOM:
        yield _because(
            'name = "fedavg"', f"{free} free here: a backward pass fits, and is cheapest"
        )
    else:
        yield _because('name = "spry"', f"{free} free here: forward mode needs the least memory")
    yield "# 'forefed plan' measures what fits the smallest machine that takes part."


def _model(seen: Description, machine: Machine) -> Iterator[str]:
    yield ""
    yield "[model]"
    if seen.task == "causal_lm":
        yield _because('name = "smollm2"', f"or a folder, or a file.gguf; it takes {INSTALL}")
    else:
        yield _because('name = "minilm"', "or a folder with a model of Hugging Face's layout")
    if machine.device == "cuda":
        yield 'device = "cuda"'
    else:
        yield _because('# device = "cuda"', "on a machine with a GPU")


def _task(seen: Description) -> Iterator[str]:
    yield ""
    yield "[data.task]"
    for key, value in seen.settings.items():
        yield f"{key} = {_toml(value)}"
    if seen.labels and seen.task != "regression":
        shown = [f"{one_line(name, 30)} ({n:,})" for name, n in list(seen.labels.items())[:8]]
        more = ", ..." if seen.label_count > len(shown) else ""
        yield f"# labels and their rows: {', '.join(shown)}{more}"
    for column in seen.other_labels[:3]:
        yield f"# or learn this column: label = {_toml(column)}"
    text = seen.settings.get("text")
    if seen.other_texts and isinstance(text, str):
        both = _toml([*seen.other_texts[:3], text])
        yield f"# or read more texts of a row, one after the other: text = {both}"


def _clients(seen: Description, owner: Owners | None) -> Iterator[str]:
    yield ""
    yield "[partition]"
    if owner is not None:
        yield _because('kind = "natural"', "one client per value of the column")
        yield f"column = {_toml(owner.column)}"
        yield (
            f"# {owner.owners:,} clients of {owner.smallest:,} to {owner.largest:,} rows, half of "
            f"them of {owner.median:,} or more"
        )
        if owner.missing:
            yield _because('unowned = "drop"', f"{owner.missing:,} rows name no client")
        return
    yield _because('kind = "dirichlet"', "simulated clients: no column names real ones")
    yield f"clients = {max(2, min(20, seen.rows // ROWS_OF_A_CLIENT))}"
    yield _because("alpha = 1.0", "smaller: clients differ more in their labels")
    for other in seen.owners[:3]:
        yield (
            f'# or one client per value: kind = "natural", column = {_toml(other.column)} '
            f"({other.owners:,} values)"
        )


def _seen(seen: Description) -> Iterator[str]:
    test = "" if seen.test_rows is None else f", and {seen.test_rows:,} to test on"
    yield f"{seen.rows:,} rows{test}; columns: {', '.join(seen.columns)}"
    settings = ", ".join(f"{k} = {_toml(v)}" for k, v in seen.settings.items())
    yield f"task: {settings}"
    if seen.labels and seen.task != "regression":
        left = f"; {seen.unlabelled:,} rows have none, and are left out" if seen.unlabelled else ""
        yield f"labels: {seen.label_count:,} different ones{left}"
    for what, others in {"be labels": seen.other_labels, "be read": seen.other_texts}.items():
        if others:
            yield f"could {what} as well: {several(others, 5)}"
    for owner in seen.owners[:1]:
        if owner.by_name:
            yield f"clients: {owner.owners:,}, by the column {owner.column!r}"
    yield from seen.notes


def _next(seen: Description, output: Path, folder: Path) -> Iterator[str]:
    yield f"written: {output}"
    yield "Next:"
    yield f"  forefed check {output}"
    yield f"  forefed run {output}"
    if seen.task == "causal_lm":
        yield f'  forefed predict {folder} "A question, or a text to go on with"'
    else:
        yield f"  forefed predict {folder} --file new.csv --output labelled.csv"


def _tokens(seen: Description) -> int:
    """Room for 95 of 100 texts, in steps of 16."""
    written = seen.task == "causal_lm" and {"messages", "prompt"} & seen.settings.keys()
    wanted = seen.characters[1] / CHARACTERS_OF_A_TOKEN + (TEMPLATE if written else 2)
    low, high = TOKENS
    return int(min(2 * high if written else high, max(low, 16 * -(-wanted // 16))))


def _run_name(output: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", output.stem).strip("-_")[:60] or "mine"


def _because(setting: str, reason: str) -> str:
    return f"{setting:<28} # {reason}"


def _toml(value: Any) -> str:
    """A string or a list of strings as TOML has them."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
