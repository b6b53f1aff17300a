"""One class per example, as a word of a language model."""

from __future__ import annotations

from typing import Any, ClassVar

from forefed.models.objectives.classes import Classes


class Choice(Classes):
    """One class per example, scored by the language model's head: logits [B, C] are those of the
    classes' tokens (``Examples.choices``) behind the prompt, and the loss is over these alone.

    Source: MeZO (arXiv 2305.17333), appendix E.2; the same form in DeComFL and HiSo.
    """

    head: ClassVar[str] = "choice"
    auto: ClassVar[str] = "AutoModelForCausalLM"
    peft_task: ClassVar[str | None] = "CAUSAL_LM"
    pooled: ClassVar[bool] = False
    has_head: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        return {}
