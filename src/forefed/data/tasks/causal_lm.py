"""The text itself, as a language model learns it, or the answers in a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from forefed.data import chat
from forefed.data.columns import AUTO, TEXTS, first_named, guess, named, texts, unsaid
from forefed.data.encoding import Texts
from forefed.data.examples import Indices
from forefed.data.prompts import prompt_tokens
from forefed.data.rows import Rows
from forefed.data.tasks.task import Head, TextTask


class CausalLM(TextTask):
    """The text itself, after a prompt where there is one, or the answers in a conversation."""

    kind: Literal["causal_lm"] = "causal_lm"
    head: ClassVar[Head] = "causal_lm"
    writes: ClassVar[bool] = True
    text: str = AUTO
    """A column of texts; "auto": a column of messages, else ``prompt`` and ``completion``, else
    texts."""
    prompt: str | None = None
    """A column of prompts: they stand before the text and carry no loss."""
    messages: str | None = None
    """A column of conversations, lists of {"role": ..., "content": ...}: the assistant's answers
    are learned, each after what the model's chat template writes before it."""
    template: Literal["auto", "none"] = "auto"
    """"auto": a prompt is put into the chat template as a user's message and the text as the
    assistant's, where the model's tokeniser has one; "none": nothing is put between them."""

    @model_validator(mode="after")
    def _one_form(self) -> CausalLM:
        if self.messages is not None and (self.text != AUTO or self.prompt is not None):
            raise ValueError("messages: name a column of messages, or text and prompt, not both")
        if self.messages is not None and self.template == "none":
            raise ValueError("template: messages are written by a template; leave it out")
        return self

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        if self.messages is not None:
            return {"messages": [named(rows, self.messages, "data.task.messages")]}
        prompt = [] if self.prompt is None else [named(rows, self.prompt, "data.task.prompt")]
        where = "data.task.text"
        if self.text != AUTO:
            return {"text": [named(rows, self.text, where)], "prompt": prompt}
        if not prompt:
            found = first_named(rows.column_names, chat.MESSAGES)
            if found and not rows.is_text(found[0]):
                return {"messages": found}
            pair = first_named(rows.column_names, [("prompt", "completion")])
            if pair:
                return {"text": pair[1:], "prompt": pair[:1]}
        single = [names for names in TEXTS if len(names) == 1]
        return {"text": guess(rows, single, where, prompt), "prompt": prompt}

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        if "messages" in columns:
            (column,) = columns["messages"]
            return (), [chat.read_dialogues(place, rows, column) for place, rows in tables]
        found: list[Texts] = []
        for place, rows in tables:
            text = texts(rows, columns["text"])
            if not columns["prompt"]:
                notes = unsaid(self.kind, columns["text"][0])
                found.append(Texts([""] * len(text), text, None, notes))
                continue
            prompt = texts(rows, columns["prompt"])
            if self.template == "none":
                found.append(Texts(prompt, text, None))
            else:
                numbers = np.array([rows.number(i) for i in range(len(rows))], dtype=np.int64)
                found.append(
                    chat.Dialogues(prompt, text, None, prompts=True, place=place, numbers=numbers)
                )
        return (), found

    def labelled(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> list[Indices]:
        if "messages" not in columns:
            return super().labelled(tables, columns)
        return [chat.answered(rows, columns["messages"][0]) for _, rows in tables]

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns.get("messages") or columns["prompt"] or columns["text"]]

    def asked_texts(self, rows: Rows, columns: dict[str, list[str]]) -> list[Sequence[str]]:
        if "messages" in columns:
            return [list(chat.as_json(rows, columns["messages"][0]))]
        return super().asked_texts(rows, columns)

    def prompts(
        self, tokenizer: Any, texts: Sequence[str], columns: Mapping[str, Sequence[str]]
    ) -> list[list[int]]:
        if not self._templated(tokenizer, columns):
            return prompt_tokens(tokenizer, texts)
        whole = "messages" in columns
        return [
            chat.prompt(
                tokenizer,
                chat.dialogue_of(text, where) if whole else [{"role": chat.USER, "content": text}],
                where,
            )
            for text, where in ((t, f"predict: text {k}") for k, t in enumerate(texts, 1))
        ]

    def ends(self, tokenizer: Any, columns: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
        if not self._templated(tokenizer, columns):
            return super().ends(tokenizer, columns)
        return chat.ends_of(tokenizer)

    def dressed(self, tokenizer: Any, columns: Mapping[str, Sequence[str]]) -> Any:
        if self._templated(tokenizer, columns):
            tokenizer.chat_template = chat.template_of(tokenizer)
        return tokenizer

    def recipe(
        self, tokenizer: Any, columns: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> str | None:
        if not self._templated(tokenizer, columns):
            return None
        return f"""for text in texts:
    inputs = tokenizer.apply_chat_template(
        [{{"role": "user", "content": text}}], return_tensors="pt", return_dict=True,
        add_generation_prompt={chat.asks_for_answers(tokenizer)},
    )
    n = inputs["input_ids"].shape[1]
    ends = {list(chat.ends_of(tokenizer))}  # tokens that end an answer
    output = model.generate(**inputs, max_new_tokens=100, do_sample=False, eos_token_id=ends)
    print(text, "->", tokenizer.decode(output[0, n:], skip_special_tokens=True))"""

    def numpy_recipe(
        self, tokenizer: Any, columns: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> str | None:
        around, plain = ("", ""), prompt_tokens(tokenizer, [""])[0]
        if self._templated(tokenizer, columns):
            around, plain = chat.around(tokenizer), []
        return f"""before, after = {around!r}  # what the model's template writes around a question
begin = {plain}  # tokens before a text
ends = {list(self.ends(tokenizer, columns))}  # tokens that end an answer
for text in texts:
    asked = tokenizer.encode(before + text + after, add_special_tokens=False).ids
    ids = begin + asked
    n = len(ids)
    while len(ids) < min(n + 100, config.get("max_position_embeddings", n + 100)):
        ids.append(int(logits_of(ids)[-1].argmax()))
        if ids[-1] in ends:
            break
    print(text, "->", tokenizer.decode(ids[n:]))"""

    def _templated(self, tokenizer: Any, columns: Mapping[str, Sequence[str]]) -> bool:
        """Does a chat template write the prompts?"""
        asked = self.template == "auto" and columns.get("prompt") and tokenizer.chat_template
        return "messages" in columns or bool(asked)
