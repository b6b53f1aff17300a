"""A whole small world on disk: two tiny random models, texts, pairs, and runs of under a second.

``world`` (a fixture of the session, see conftest.py) knows the folders; ``world.config(...)`` is a
configuration of 6 clients, 3 per round, 2 rounds, to which a test adds the settings it is about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forefed.core.errors import Stopped
from forefed.core.types import Json, Lost, Reply
from forefed.run import Config, Result, Watcher, configure, run
from tiny import PAD, tiny_model

CLASSES = ("animal", "metal", "tree")
SITES = {"one": 1, "two": 2, "small": 4, "middle": 9, "large": 16, "main": 31}
"""Owners and their rows: one with a single example, none with a number like another's."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = (*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), 50)))
assert WORDS[PAD] == "<pad>"

TINY_TEXT_CLASSIFICATION = (
    "strategy=spry",
    "model.dtype=float32",
    # what the digests were recorded with; test_pooling and test_start have the others
    "model.pooling=pooler",
    "start=none",
    "guard=none",
    "data.source=files",
    "data.max_length=12",
    "partition=iid",
    "partition.clients=6",
    "cohort=3",
    "rounds=2",
    "client.max_steps=2",
    "client.batch_size=4",
    "evaluate.every=1",
)


@dataclass(frozen=True)
class World:
    """Where things are. ``texts`` has the columns text, label and site; ``pairs`` text1, text2 and
    label; ``questions`` those of SQuAD; ``tags`` text and tags (lists); ``scores`` text
    and score."""

    root: Path
    bert: Path
    llama: Path
    texts: Path
    pairs: Path
    questions: Path
    tags: Path
    scores: Path

    def sets(self, out: Path, *more: str) -> list[str]:
        """Settings of a tiny run below ``out``, then ``more``, which win."""
        places = [f"out='{out}'", f"model.name='{self.bert}'", f"data.source.path='{self.texts}'"]
        return [*TINY_TEXT_CLASSIFICATION, *places, *more]

    def config(self, out: Path, *more: str) -> Config:
        return configure(sets=self.sets(out, *more))

    def run(self, out: Path, *more: str) -> Result:
        return run(self.config(out, *more))

    @property
    def qa(self) -> list[str]:
        """What turns a run into question answering."""
        return [f"data.source.path='{self.questions}'", "data.task=qa"]

    @property
    def lm(self) -> list[str]:
        """What turns a run into language modelling with the tiny Llama."""
        return [f"model.name='{self.llama}'", "data.task=causal_lm"]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def make_world(root: Path) -> World:
    import torch

    bert, llama = root / "tiny-bert", root / "tiny-llama"
    # Without its head, as pretrained encoders come: the run draws one from its seed.
    tiny_model("bert", dtype=torch.float32).bert.save_pretrained(bert)
    tiny_model("llama", causal=True, dtype=torch.float32).save_pretrained(llama)
    tokenizer(types=True).save_pretrained(bert)
    tokenizer(types=False).save_pretrained(llama)
    texts, pairs = root / "texts.jsonl", root / "pairs.jsonl"
    write_lines(texts, text_rows())
    rows = text_rows()
    write_lines(
        pairs,
        [
            {"text1": a["text"], "text2": b["text"], "label": str(a["label"] == b["label"])}
            for a, b in zip(rows, rows[1:] + rows[:1], strict=True)
        ],
    )
    questions = write_lines(root / "questions.jsonl", question_rows())
    tags, scores = root / "tags.jsonl", root / "scores.jsonl"
    write_lines(tags, [{"text": row["text"], "tags": tags_of(row)} for row in rows])
    write_lines(scores, [{"text": row["text"], "score": score_of(row)} for row in rows])
    return World(root, bert, llama, texts, pairs, questions, tags, scores)


def text_rows() -> list[dict[str, str]]:
    """63 rows of three classes, each with words of its own; one text is empty, one very long."""
    sites = [site for site, count in SITES.items() for _ in range(count)]
    rows = []
    for i, site in enumerate(sites):
        label = (i * i + i // 7) % 3
        words = [f"w{4 + 15 * label + (i * k + k) % 15}" for k in range(1, 3 + i % 6)]
        rows.append({"text": " ".join(words), "label": CLASSES[label], "site": site})
    rows[10]["text"] = ""
    rows[20]["text"] = " ".join(["w7"] * 300)
    return rows


def tags_of(row: dict[str, str]) -> list[str]:
    """The row's class, "long" from four words on; nothing of an empty text."""
    size = len(row["text"].split())
    return [row["label"], "long"][: 0 if not size else 2 if size > 3 else 1]


def score_of(row: dict[str, str]) -> float:
    """From 0 to 10: more of longer texts and of later classes."""
    return min(len(row["text"].split()), 6) + 2.0 * CLASSES.index(row["label"])


def question_rows() -> list[dict[str, Any]]:
    """48 questions, four about each of twelve contexts: "w9 w3" asks for what follows w9 there (one
    or two words); every fourth word is not there. The last context is long, its answers late."""
    rows = []
    for i in range(48):
        at = 300 if i >= 44 else 0
        words = ["w4"] * at + [f"w{5 + (7 * (i // 4) + k * k + k) % 45}" for k in range(8)]
        first = at + 1 + i % 3
        answer = " ".join(words[first : first + 1 + i % 2]) if i % 4 else ""
        context = " ".join(words)
        rows.append(
            {
                "question": f"{words[first - 1] if answer else 'w3'} w3",
                "context": context,
                "answer": answer,
                "answer_start": len(" ".join(words[:first])) + 1 if answer else -1,
            }
        )
    return rows


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokenizer(types: bool) -> Any:
    """Splits at blanks: "w4 w5" is [0, 4, 5, 2]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if types else "<s> $A",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=32,
        model_input_names=[*names, "token_type_ids"] if types else names,
    )


class Interrupted(Stopped):
    """What ``StopAfter`` raises, in the place of a user's Ctrl-C."""


class StopAfter(Watcher):
    """Interrupts a run: after ``rounds`` rounds, and there after ``outcomes`` answers more."""

    def __init__(self, rounds: int, outcomes: int = 0):
        self.rounds, self.outcomes = rounds, outcomes
        self.finished = self.answers = 0

    def outcome(self, outcome: Reply | Lost) -> None:
        if self.finished == self.rounds:
            self.answers += 1
            if self.answers == self.outcomes:
                raise Interrupted

    def round(self, line: Json) -> None:
        self.finished += 1
        if self.finished == self.rounds and not self.outcomes:
            raise Interrupted


def lines(folder: Path, name: str) -> list[Json]:
    return [json.loads(text) for text in (folder / name).read_text().splitlines()]


def without_clock(rounds: Sequence[Json]) -> list[Json]:
    """Lines of rounds.jsonl without what a clock or the process's memory decides."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "memory")} for line in rounds]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, but for the lock: content and time of the last change."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }
