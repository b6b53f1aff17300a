"""The next token, of a language model."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from forefed.core.metrics import BITS_PER_BYTE, Measures
from forefed.core.types import Batch
from forefed.data.examples import IGNORED_LABEL, Examples
from forefed.models.objectives.objective import CrossEntropy, Rows, Sums, wide


class NextToken(CrossEntropy):
    """A language model: logits [B, S, V] at S predict the token at S + 1 of labels [B, S].

    Sums: ``bytes``, of the text that is predicted.
    """

    head: ClassVar[str] = "causal_lm"
    auto: ClassVar[str] = "AutoModelForCausalLM"
    peft_task: ClassVar[str | None] = "CAUSAL_LM"
    measures: ClassVar[Measures] = Measures((BITS_PER_BYTE,), "tokens")
    has_head: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    def recipe(self) -> str:
        return """for text in texts:
    inputs = tokenizer(text, return_tensors="pt")
    n = inputs["input_ids"].shape[1] - ends  # without what this tokeniser puts behind a text
    inputs = {name: inputs[name][:, :n] for name in ("input_ids", "attention_mask")}
    last = min(n + 40, getattr(config, "max_position_embeddings", n + 40))
    output = model.generate(**inputs, max_length=last, do_sample=False)
    print(text, "->", tokenizer.decode(output[0, n:], skip_special_tokens=True))"""

    def weight(self, batch: Batch) -> int:
        """Predicted tokens."""
        return int((batch.labels[:, 1:] != IGNORED_LABEL).sum())

    def terms(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        words = wide(logits[:, :-1]).flatten(0, 1)
        return words, batch.labels[:, 1:].flatten().to(words.device)

    def counts(self, logits: Tensor, examples: Examples, rows: Rows) -> Sums:
        return {"bytes": float(examples.n_bytes[rows].sum())}

    def results(self, sums: Sums) -> dict[str, float]:
        return {"bits_per_byte": sums["loss_sum"] / math.log(2) / sums["bytes"]}

    def number(self, sums: Sums) -> int:
        return int(sums["weight"])

    def answers(self, logits: Tensor, examples: Examples, rows: Rows) -> list[str]:
        raise TypeError("a language model is asked token by token (use/predict.py)")
