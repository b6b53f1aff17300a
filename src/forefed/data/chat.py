"""Conversations, as a tokeniser's chat template writes them, and what of them is learned.

One function (``prompt``) writes what stands before an answer, in training and at use. An answer's
tokens are those that the same conversation has behind it once the answer is given (as
transformers' ``add_generation_prompt`` means it), up to the last special token, which ends it.

A template may write earlier turns otherwise once others follow (thoughts that are left out). So
answers of one conversation share a row only where the later prompt begins with the row, token for
token; else each has a row of its own. Nothing is learned that nobody is asked at use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forefed.core.errors import UserError
from forefed.data.columns import texts
from forefed.data.encoding import CHUNK, Block, Row, Texts, blocks_of_rows
from forefed.data.examples import Indices
from forefed.data.rows import Rows, Strings, first_line
from forefed.data.shorten import shortened

Message = Mapping[str, Any]
MESSAGES = (("messages",), ("conversation",), ("conversations",))
"""Names of columns of messages."""
ASSISTANT, USER = "assistant", "user"
PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}### {{ m['role'] | capitalize }}:\n"
    "{{ m['content'] }}{{ eos_token or '' if m['role'] == 'assistant' else '' }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""The template where a tokeniser has none: a line with the role before every message, and the
end-of-text token behind an answer."""
PROBE: tuple[Message, ...] = (
    {"role": USER, "content": "question"},
    {"role": ASSISTANT, "content": "qzx"},  # which no template has of its own
)
NO_TEMPLATE = (
    "the model's tokeniser has no chat template, so a plain one is used: '### User:' and "
    "'### Assistant:' in lines of their own, the end-of-text token behind an answer; an export "
    "carries it"
)


@dataclass(frozen=True)
class Asked:
    """What stands before an answer, and the answer with what ends it. ``content``: its own words,
    as they were given."""

    prompt: str
    answer: str
    content: str


@dataclass(frozen=True)
class Dialogues(Texts):
    """Conversations with an assistant.

    ``first`` holds each as JSON, ``second`` its last answer; of ``prompts`` the question and the
    answer, which are put into the template where the tokeniser has one. ``numbers``: what messages
    call the rows of ``place``.
    """

    prompts: bool = False
    place: str = "training"
    numbers: Indices | None = None

    def select(self, rows: Indices) -> Dialogues:
        chosen = super().select(rows)
        numbers = None if self.numbers is None else self.numbers[rows]
        return replace(self, **vars(chosen), numbers=numbers)

    def form(self, tokenizer: Any) -> Any:
        return [self.prompts, template_of(tokenizer), str(tokenizer.special_tokens_map)]

    def said(self, tokenizer: Any, counts: Mapping[str, int]) -> tuple[str, ...]:
        if self.prompts and not tokenizer.chat_template:
            return ()
        notes: list[str] = [] if tokenizer.chat_template else [NO_TEMPLATE]
        if self.prompts:
            notes.append(
                "prompts and answers are put into the chat template of the model's tokeniser "
                '(data.task.template = "none": nothing is put between them)'
            )
        cut, lost = counts["truncated"], counts["dropped"]
        if cut:
            notes.append(
                f"{cut:,} conversations are longer than data.max_length: their last answers are "
                "cut off"
            )
        if lost:
            notes.append(
                f"{lost:,} conversations are left out: no word of an answer is left within "
                "data.max_length"
            )
        return tuple(notes)

    def blocks(self, tokenizer: Any, max_length: int, testing: bool) -> Iterator[Block]:
        if self.prompts and not tokenizer.chat_template:
            return super().blocks(tokenizer, max_length, testing)
        return blocks_of_rows(self._rows(tokenizer, max_length), testing)

    def _rows(self, tokenizer: Any, max_length: int) -> Iterator[tuple[int, Row]]:
        needs_offsets(tokenizer)
        asks = asks_for_answers(tokenizer)
        for start in range(0, len(self), CHUNK):
            stop = min(start + CHUNK, len(self))
            asked = [self._asked(tokenizer, i, asks) for i in range(start, stop)]
            flat = [one for each in asked for one in each]
            prompts = plain_tokens(
                tokenizer, shortened([one.prompt for one in flat], tokenizer, max_length)
            )
            answers = list(
                _answers(
                    tokenizer, shortened([one.answer for one in flat], tokenizer, max_length), flat
                )
            )
            at = 0
            for i, each in enumerate(asked, start):
                parts = zip(prompts[at : at + len(each)], answers[at : at + len(each)], strict=True)
                at += len(each)
                for row in _joined(list(parts), max_length):
                    yield i, row

    def _asked(self, tokenizer: Any, i: int, asks: bool) -> list[Asked]:
        """Every answer of a conversation that something stands before."""
        if self.prompts:
            assert self.second is not None
            messages: list[Message] = [
                {"role": USER, "content": self.first[i]},
                {"role": ASSISTANT, "content": self.second[i]},
            ]
        else:
            messages = json.loads(self.first[i])
        number = i + 1 if self.numbers is None else int(self.numbers[i])
        where = f"data.task: row {number} of the {self.place} rows"
        found = []
        for k, message in enumerate(messages):
            if message["role"] != ASSISTANT or not k:
                continue
            before = rendered(tokenizer, messages[:k], asks, where)
            whole = rendered(tokenizer, messages[: k + 1], False, where)
            if not whole.startswith(before):
                raise UserError(
                    f"{where}: the chat template writes what stands before message {k + 1} "
                    "otherwise once it is given, so the answer's tokens cannot be told apart; take "
                    "a model whose template does not"
                )
            found.append(Asked(before, whole[len(before) :], message["content"]))
        return found


@dataclass(frozen=True)
class _Answer:
    """Tokens of an answer, and of each the bytes that it stands for (special ones: 0)."""

    ids: list[int]
    n_bytes: list[int]


def _answers(tokenizer: Any, texts: list[str], asked: Sequence[Asked]) -> Iterator[_Answer]:
    if not texts:
        return
    special, eos = special_of(tokenizer), tokenizer.eos_token_id
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for text, one, ids, places in zip(
        texts, asked, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        last = next((k for k in reversed(range(len(ids))) if ids[k] in special), None)
        if len(text) < len(one.answer):  # a beginning: its end is beyond what is kept
            last = None
        stop = len(ids) if last is None else last + 1
        ends = [0, *(end for _, end in places[:stop])]
        sizes = [
            0 if i in special else len(text[a:b].encode())
            for i, a, b in zip(ids[:stop], ends, ends[1:], strict=False)
        ]
        ids = ids[:stop]
        if last is None and eos is not None:
            ids, sizes = [*ids, eos], [*sizes, 0]
        yield _Answer(ids, sizes)


def _joined(parts: Sequence[tuple[list[int], _Answer]], max_length: int) -> Iterator[Row]:
    """Rows of one conversation's prompts and answers."""
    ids: list[int] = []
    sizes: list[int] = []  # bytes of every token, -1 where it is not learned
    first = 0
    for prompt, answer in parts:
        if not ids or prompt[: len(ids)] != ids:
            if ids:
                yield _row(ids, sizes, first, max_length)
            ids, sizes, first = [], [], len(prompt)
        sizes = [*sizes, *[-1] * (len(prompt) - len(ids)), *answer.n_bytes]
        ids = [*prompt, *answer.ids]
    if ids:
        yield _row(ids, sizes, first, max_length)


def _row(ids: list[int], sizes: list[int], first: int, max_length: int) -> Row:
    """``sizes``: bytes of every token, -1 where it is not learned."""
    kept = sizes[:max_length]
    size = sum(n for n in kept if n > 0)
    learned = np.array([n >= 0 for n in kept], dtype=np.uint8)
    return Row(
        ids[:max_length],
        None,
        first,
        size,
        cut=len(ids) > max_length,
        dropped=size == 0,
        learned=learned,
    )


def prompt(tokenizer: Any, messages: Sequence[Message], where: str) -> list[int]:
    """The tokens that stand before an answer to these messages.

    Args:
        where: what an error names.

    Raises:
        UserError: the template refuses the messages.
    """
    text = rendered(tokenizer, messages, asks_for_answers(tokenizer), where)
    return plain_tokens(tokenizer, [text])[0]


def around(tokenizer: Any) -> tuple[str, str]:
    """What the template writes before a user's only message, and behind it up to the answer.

    Raises:
        UserError: the template leaves the message out, or writes it twice.
    """
    words = PROBE[1]["content"]
    asked: list[Message] = [{"role": USER, "content": words}]
    whole = rendered(tokenizer, asked, asks_for_answers(tokenizer), "data.task")
    if whole.count(words) != 1:
        raise UserError("data.task: the model's chat template does not write a message as it is")
    before, _, after = whole.partition(words)
    return before, after


def plain_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Without what the tokeniser puts around a text: a template has it already."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return found


def special_of(tokenizer: Any) -> set[int]:
    """The special tokens, without the one for words that the tokeniser does not know."""
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def template_of(tokenizer: Any) -> str:
    """The tokeniser's own chat template; ``PLAIN`` where it has none."""
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default") or next(iter(found.values()), None)
    return found or PLAIN


def rendered(tokenizer: Any, messages: Sequence[Message], asks: bool, where: str) -> str:
    """The messages as the template writes them.

    Args:
        asks: with what begins an answer.
        where: what an error names.

    Raises:
        UserError: the template refuses them.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            chat_template=template_of(tokenizer),
            tokenize=False,
            add_generation_prompt=asks,
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(str(m["role"]) for m in messages)
        raise UserError(
            f"{where}: the model's chat template refuses messages of the roles {roles} "
            f"({first_line(error)}); mend or remove the row, or take a model whose template allows "
            "them"
        ) from None
    return text


def asks_for_answers(tokenizer: Any) -> bool:
    """Does an answer begin with what the template writes to ask for one? Some have no such thing,
    and an answer's own head is learned with it then."""
    whole = rendered(tokenizer, PROBE, False, "data.task")
    return whole.startswith(rendered(tokenizer, PROBE[:1], True, "data.task"))


def ends_of(tokenizer: Any) -> tuple[int, ...]:
    """The tokens at which an answer ends: that of texts, and those of the template."""
    whole = rendered(tokenizer, PROBE, False, "data.task")
    tail = whole.rpartition(PROBE[1]["content"])[2]
    special = special_of(tokenizer)
    found = [i for i in plain_tokens(tokenizer, [tail])[0] if i in special]
    eos = tokenizer.eos_token_id
    return tuple(dict.fromkeys([*found, *([] if eos is None else [eos])]))


def contents(value: str) -> list[str]:
    """The texts of messages in JSON; none where it holds something else."""
    try:
        found = json.loads(value)
    except ValueError:
        return []
    is_one = isinstance(found, list) and all(map(_is_message, found))
    return [message["content"] for message in found] if is_one else []


def dialogue_of(text: str, where: str) -> list[Message]:
    """A conversation to be answered: JSON messages, the last answer left out, or a user's text.

    Raises:
        UserError: messages without a role or a text, or nothing but an answer; ``where`` names it.
    """
    if text.lstrip().startswith("["):
        try:
            messages = json.loads(text)
        except ValueError:
            messages = None
        if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
            asked = _messages(text, where, "messages")
            asked = asked[:-1] if asked[-1]["role"] == ASSISTANT else asked
            if not asked:
                raise UserError(
                    f"{where} holds an answer and nothing before it; put a message of the role "
                    f"'{USER}' there"
                )
            return list(asked)
    return [{"role": USER, "content": text}]


def read_dialogues(place: str, rows: Rows, column: str) -> Dialogues:
    """The conversations of a column, each with an answer that says something.

    Raises:
        UserError: a row that holds no messages, or an empty answer; names the row.
    """
    whole, last = [], []
    for i, value in enumerate(as_json(rows, column)):
        where = f"data.task.messages: row {rows.number(i)} of the {place} rows"
        messages = _messages(value, where, column)
        answers = [m["content"] for k, m in enumerate(messages) if m["role"] == ASSISTANT and k]
        if not answers:
            raise UserError(
                f"{where} has no answer (no message of the role 'assistant' after another one); "
                'mend or remove the row, or set data.unlabelled = "drop"'
            )
        empty = next((k for k, text in enumerate(answers, 1) if not text.strip()), None)
        if empty is not None:
            raise UserError(
                f"{where}: answer {empty} is empty, so nothing is to be learned from it; mend or "
                'remove the row, or set data.unlabelled = "drop"'
            )
        whole.append(json.dumps(messages, ensure_ascii=False))
        last.append(answers[-1])
    numbers = np.array([rows.number(i) for i in range(len(rows))], dtype=np.int64)
    return Dialogues(_strings(whole), _strings(last), None, place=place, numbers=numbers)


def answered(rows: Rows, column: str) -> Indices:
    """The rows whose conversations have answers, none of them empty."""
    kept = []
    for i, value in enumerate(as_json(rows, column)):
        messages = _messages(value, f"data.task.messages: row {rows.number(i)}", column)
        answers = [m["content"] for k, m in enumerate(messages) if m["role"] == ASSISTANT and k]
        if answers and all(text.strip() for text in answers):
            kept.append(i)
    return np.array(kept, dtype=np.int64)


def as_json(rows: Rows, column: str) -> Iterator[str]:
    """Every value of a column of messages as JSON (what it is in a CSV file)."""
    if rows.is_text(column):
        yield from texts(rows, [column])
        return
    for value in rows.values(column):
        yield json.dumps(value, ensure_ascii=False, default=str)


def _messages(value: str, where: str, column: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found or not all(map(_is_message, found)):
        raise UserError(
            f"{where} has no messages in column '{column}' ({value[:60]}); a list like "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}] belongs '
            "there"
        )
    return [{k: v for k, v in message.items() if v is not None} for message in found]


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def needs_offsets(tokenizer: Any) -> None:
    """Raises UserError: the tokeniser does not tell which characters a token stands for."""
    if not tokenizer.is_fast:
        raise UserError(
            "data.task: language modelling counts the bytes of predicted text, which needs the "
            "fast form of the model's tokeniser (tokenizer.json); choose a model that has one"
        )


def _strings(values: list[str]) -> Strings:
    """In one array, which takes a tenth of the memory."""
    import pyarrow

    kind = pyarrow.large_string()
    return Strings(pyarrow.chunked_array([pyarrow.array(values, kind)]))
