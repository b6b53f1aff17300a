"""One class of a text, as the word that a language model puts behind a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator

from forefed.core.errors import UserError
from forefed.data import chat
from forefed.data.encoding import CHUNK, Block, Row, Texts, blocks_of_rows, tokenise
from forefed.data.examples import Examples, Indices
from forefed.data.prompts import prompt_tokens
from forefed.data.rows import Rows
from forefed.data.shorten import shortened
from forefed.data.tasks.classification import Classification
from forefed.data.tasks.task import Head

TEXT = "{text}"
SAID = 'print(list(choices)[int(chances.argmax())], f"{float(chances.max()):.2f}", text)'
"""How a recipe says the likeliest class, and how likely it is."""


@dataclass(frozen=True)
class Prompted(Texts):
    """Texts with classes, each between the two parts of a prompt; only the text itself is cut."""

    prompt: str = TEXT
    templated: bool = False

    def select(self, rows: Indices) -> Prompted:
        return replace(self, **vars(super().select(rows)))

    def form(self, tokenizer: Any) -> Any:
        return [self.prompt, chat.template_of(tokenizer) if self.templated else None]

    def blocks(self, tokenizer: Any, max_length: int, testing: bool) -> Iterator[Block]:
        return blocks_of_rows(enumerate(self._rows(tokenizer, max_length)), testing)

    def _rows(self, tokenizer: Any, max_length: int) -> Iterator[Row]:
        assert self.labels is not None
        before, after = parts(tokenizer, self.prompt, self.templated)
        room = max_length - len(before) - len(after)
        if room < 1:
            raise UserError(
                f"data.task.prompt: it takes {len(before) + len(after)} tokens by itself, and "
                f"data.max_length = {max_length} leaves no room for a text; raise it"
            )
        for start in range(0, len(self), CHUNK):
            chunk = list(self.first[start : start + CHUNK])
            short = shortened(chunk, tokenizer, max_length)
            for i, ids in enumerate(chat.plain_tokens(tokenizer, short)):
                yield Row(
                    [*before, *ids[:room], *after],
                    None,
                    int(self.labels[start + i]),
                    len(chunk[i].encode()),
                    cut=len(ids) > room,
                )


class Choice(Classification):
    """One class per text, by the word that a language model finds likeliest after a prompt.

    Nothing is drawn at random, and an untrained model has an opinion already. A class is scored by
    the first token of its word, against those of the other classes.
    """

    kind: Literal["choice"] = "choice"  # type: ignore[assignment]
    head: ClassVar[Head] = "choice"
    writes: ClassVar[bool] = True
    source: ClassVar[str] = "MeZO, arXiv 2305.17333, appendix E.2"
    prompt: str = "{text}\nAnswer:"
    """What the model reads; ``{text}`` is where the text stands, the word comes behind it."""
    words: dict[str, str] | None = None
    """By class its word, for example { neg = "terrible", pos = "great" }; None: the classes' names.
    Two words must not begin with the same token."""
    template: Literal["none", "chat"] = "none"
    """"chat": the prompt is put into the model's chat template as a user's message."""

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if value.count(TEXT) != 1:
            raise ValueError("give the place of the text once, as {text}")
        return value

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        names, found = super().texts(tables, columns)
        self._words(names)
        how: dict[str, Any] = {"prompt": self.prompt, "templated": self.template == "chat"}
        return names, [Prompted(**vars(texts), **how) for texts in found]

    def unlabelled(self, tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> Examples:
        none = np.zeros(len(texts[0]), dtype=np.int64)
        asked = Prompted(
            texts[0], None, none, prompt=self.prompt, templated=self.template == "chat"
        )
        return tokenise(asked, tokenizer, max_length).examples

    def finish(self, examples: Examples, tokenizer: Any, names: Sequence[str]) -> Examples:
        """With the tokens that stand for the classes."""
        return replace(examples, choices=self._tokens(tokenizer, names))

    def _tokens(self, tokenizer: Any, names: Sequence[str]) -> tuple[int, ...]:
        """The first token of every class's word.

        Raises:
            UserError: two words that begin with the same token, or one that has none.
        """
        _, after = self.prompt.split(TEXT)
        apart = self.template == "none" and not after[-1:].isspace()
        tokens: dict[int, str] = {}
        for word in self._words(names):
            (ids,) = chat.plain_tokens(tokenizer, [f" {word}" if apart else word])
            if not ids or ids[0] == tokenizer.unk_token_id:
                raise UserError(
                    f"data.task.words: the model has no token for '{word}'; take others"
                )
            if ids[0] in tokens:
                raise UserError(
                    f"data.task.words: '{tokens[ids[0]]}' and '{word}' begin with the same token, "
                    "so they cannot be told apart; give other words for the classes"
                )
            tokens[ids[0]] = word
        return tuple(tokens)

    def recipe(
        self, tokenizer: Any, columns: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> str | None:
        return f"""{self._asking(tokenizer, names)}
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*before, *ids[: longest - len(before) - len(after)], *after]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1, list(choices.values())]
    chances = logits.softmax(-1)
    {SAID}"""

    def numpy_recipe(
        self, tokenizer: Any, columns: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> str | None:
        return f"""{self._asking(tokenizer, names)}
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids = [*before, *ids[: longest - len(before) - len(after)], *after]
    scores = logits_of(ids)[-1, list(choices.values())]
    chances = numpy.exp(scores - scores.max())
    chances /= chances.sum()
    {SAID}"""

    def _asking(self, tokenizer: Any, names: Sequence[str]) -> str:
        """How both recipes begin."""
        tokens = self._tokens(tokenizer, names)
        before, after = parts(tokenizer, self.prompt, self.template == "chat")
        return f"""before, after = {before}, {after}  # tokens around a text
choices = {dict(zip(names, tokens, strict=True))}  # the token of every class
for text in texts:"""

    def _words(self, names: Sequence[str]) -> list[str]:
        if self.words is None:
            return list(names)
        missing = [name for name in names if name not in self.words]
        if missing:
            raise UserError(
                f"data.task.words: the class '{missing[0]}' has no word; give one for each of "
                f"{', '.join(names)}"
            )
        return [self.words[name] for name in names]


def parts(tokenizer: Any, prompt: str, templated: bool) -> tuple[list[int], list[int]]:
    """The tokens before a text and those behind it."""
    before, after = prompt.split(TEXT)
    if not templated:
        return prompt_tokens(tokenizer, [before])[0], chat.plain_tokens(tokenizer, [after])[0]
    message = [{"role": chat.USER, "content": prompt}]
    asks = chat.asks_for_answers(tokenizer)
    whole = chat.rendered(tokenizer, message, asks, "data.task.prompt")
    if whole.count(TEXT) != 1:
        raise UserError("data.task.template: the model's chat template leaves the message out")
    one, two = chat.plain_tokens(tokenizer, whole.split(TEXT))
    return one, two
