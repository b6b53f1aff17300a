"""The input corpus: what a user may bring, and what is right, as data.

Every ``[[case]]`` of ``tests/corpus/*.toml`` is one test. It has

name     unique
files    file name = content, see ``corpus_files`` (text, or a table that says how it is made)
sets     ``key=value`` settings, as for ``--set``; ``{at}`` is the folder of the files. Some
         defaults of a tiny run stand below them (``DEFAULTS``); ``path`` is ``data.source.path``,
         without which the first file is it ("": none is set).
does     "prepare" (if not said): ``configure``, then the data are read and tokenised, by a tiny
         tokeniser; "configure": only that; "check": ``configure`` and the command's own ``check``
         of what excludes each other; "model": a model is looked at and loaded, for the classes
         ``labels`` or another ``head``, its name "{at}/model" unless ``sets`` says another;
         "command": the command line ``command = ["check", ...]``, in
         which ``{at}`` stands for the folder
error    words of the one sentence that refuses it (for a command: status 2, one "error:"), or what
         comes out, all that is said of:
rows, classes, names, clients, counts    (of "prepare") training and test rows together, number of
         classes, their names, clients, and single counts
notes    words that the notes to the user contain; ``quiet = true``: there are none
status, says    (of "command") its status, and words that it prints
usage    (of "command") words of what the program says of its own misuse: status 2
values   (of "model") the fault is in the weights' values, which only loading can find
seconds  limit, 20 if not said: nothing may be endless

Any exception but UserError fails, whatever is expected.
"""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from commands import Command
from corpus_files import make_files
from federation import tokenizer
from forefed.config.compat import check
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.prepare import Prepared, prepare
from forefed.models.adapters import HeadOnly, Lora
from forefed.models.load import check_model, load_task
from forefed.run import configure

DEFAULTS = (
    "data.source=files",
    "data.max_length=16",
    "data.test_fraction=0.25",
    "partition=iid",
    "partition.clients=2",
    "cohort=1",
)
FIELDS = {
    *("name", "files", "sets", "path", "does", "command", "seconds"),
    *("error", "rows", "classes", "names", "clients", "counts", "notes", "quiet"),
    *("status", "says", "usage", "labels", "head", "values"),
}
CASES: dict[str, dict[str, Any]] = {}
for _file in sorted((Path(__file__).parent / "corpus").glob("*.toml")):
    for _case in tomllib.loads(_file.read_text(encoding="utf-8"))["case"]:
        assert _case["name"] not in CASES, f"{_file.name}: two cases '{_case['name']}'"
        assert not _case.keys() - FIELDS, f"{_file.name}: {_case['name']}"
        CASES[_case["name"]] = _case


@pytest.mark.parametrize("name", CASES)
def test_corpus(name: str, tmp_path: Path, forefed_command: Command) -> None:
    case = CASES[name]
    make_files(tmp_path, case.get("files", {}))
    does, refused = case.get("does", "prepare"), words(case.get("error", []))
    with at_most(case.get("seconds", 20)):
        if does == "command":
            said = forefed_command(*(w.replace("{at}", str(tmp_path)) for w in case["command"]))
            text = said.out + said.err
            assert "Traceback" not in text
            wanted = 2 if refused or "usage" in case else case.get("status", 0)
            assert said.status == wanted, text
            assert said.err.count("error:") == bool(refused), text
            missing = [w for w in refused if w not in flat(said.err)]
            told = [*words(case.get("says", [])), *words(case.get("usage", []))]
            missing += [w for w in told if w not in flat(text)]
            assert not missing, text
            return
        if does == "model":
            return of_a_model(case, tmp_path, refused)
        if not refused:
            found = outcome(case, tmp_path)
            return None if found is None else compare(case, found)
        with pytest.raises(UserError) as error:
            outcome(case, tmp_path)
    one_sentence(error.value, refused)


def of_a_model(case: dict[str, Any], folder: Path, refused: list[str]) -> None:
    """What is wrong is said before the weights are read, unless it is in their values."""
    name = [] if case.get("sets") else ["model.name={at}/model"]
    case = {
        **case,
        "path": "none.csv",
        "sets": ["model.dtype=float32", *name, *case.get("sets", [])],
    }
    head = case.get("head", "classification")
    labels = tuple(case.get("labels", ("a", "b"))) if head == "classification" else None

    def look() -> tuple[str, ...]:
        return check_model(configure(sets=settings(case, folder)).model, labels, head)[1]

    found: tuple[str, ...] = ()

    if not refused or "values" in case:
        found = look()
    else:
        with pytest.raises(UserError) as error:
            look()
        one_sentence(error.value, refused)
    model = configure(sets=settings(case, folder)).model
    if refused:
        with pytest.raises(UserError) as error:
            load_task(model, HeadOnly() if labels else Lora(), Key(0), labels, head)
        return one_sentence(error.value, refused)
    task, _ = load_task(model, HeadOnly() if labels else Lora(), Key(0), labels, head)
    assert task.notes == found
    notes = " / ".join(task.notes)
    assert not [w for w in words(case.get("notes", [])) if w not in notes], notes
    assert not (case.get("quiet") and notes), notes


def one_sentence(error: UserError, wanted: list[str]) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 900, message
    assert not [w for w in wanted if w not in message], message


def outcome(case: dict[str, Any], folder: Path) -> Prepared | None:
    """The prepared data, where it comes to that."""
    config = configure(sets=settings(case, folder))
    does = case.get("does", "prepare")
    if does == "configure":
        return None
    check(config)
    if does == "check":
        return None
    key = Key(config.seed).fold("data")
    return prepare(config.data, config.partition, tokenizer(types=True), key, None)


def settings(case: dict[str, Any], folder: Path) -> list[str]:
    path = case.get("path", next(iter(case.get("files", {})), ""))
    place = [f"data.source.path={str(folder / path)!r}"] if path else []
    own = [item.replace("{at}", str(folder)) for item in case.get("sets", [])]
    return [*DEFAULTS, f"out={str(folder / 'runs')!r}", *place, *own]


def compare(case: dict[str, Any], found: Prepared) -> None:
    facts = {
        "rows": found.counts["examples"] + found.counts["test"],
        "classes": len(found.label_names),
        "names": list(found.label_names),
        "clients": found.population.size,
        "counts": {name: found.counts.get(name) for name in case.get("counts", {})},
    }
    expected = {fact: case[fact] for fact in facts if fact in case}
    assert {fact: facts[fact] for fact in expected} == expected
    notes = " / ".join(found.notes)
    assert not [w for w in words(case.get("notes", [])) if w not in notes], notes
    assert not (case.get("quiet") and notes), notes


def words(said: str | list[str]) -> list[str]:
    return [said] if isinstance(said, str) else said


def flat(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block, that no mistake may run for ever."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
