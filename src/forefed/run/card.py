"""The model card that goes with an exported adapter: Markdown with the metadata the hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping

from forefed.core.metrics import Measures
from forefed.core.types import Json
from forefed.data.prepare import Prepared
from forefed.models.load import portable_name
from forefed.models.objectives import objective_of
from forefed.run.config import Config

OWN_HEAD = """import forefed
from transformers import pipeline

# Without forefed the class of transformers would read another pooling than the head stands on.
loaded = forefed.load("adapter")  # base="...": where the base model is, if it is not found
classify = pipeline("text-classification", model=loaded.model, tokenizer=loaded.tokenizer)"""


def model_card(config: Config, data: Prepared, summary: Json, own_head: bool = False) -> str:
    """What the adapter is, how it was trained, how well it does, and how to load it.

    ``own_head``: the class of transformers reads something else than the head was trained on.
    """
    base = portable_name(config.model)
    objective = objective_of(data.label_names, config.data.task.head)
    final, measures = summary["final"], objective.measures
    beside = against(measures, summary["baseline"])
    result = f"{measures.said(final)} on {final['n']} test {measures.terms} ({beside})"
    options = {k: v for k, v in objective.options().items() if k in ("num_labels", "problem_type")}
    arguments = ", ".join(["base", *(f"{name}={value!r}" for name, value in options.items())])
    totals = summary["totals"]
    labels = (
        "\n## Labels\n\n" + "\n".join(f"{i}. {n}" for i, n in enumerate(data.label_names)) + "\n"
        if data.label_names
        else ""
    )
    plain = f"""from peft import PeftModel
from transformers import {objective.auto}, AutoTokenizer

base = "..."  # {base}: a local folder or a hub id
model = {objective.auto}.from_pretrained({arguments})
model = PeftModel.from_pretrained(model, "adapter")"""
    return f"""---
library_name: peft
tags: [forefed, federated-learning]
---

# {config.name}

A PEFT adapter ({config.adapter.kind}) for `{base}`, trained by Forefed with
`{config.strategy.name}` over {data.population.size} simulated clients, {config.cohort} per round,
{summary["rounds"]} rounds.

Result: {result}. One seed ({config.seed}); no interval is known.

Cost: {totals["bytes_up"]:,} bytes up and {totals["bytes_down"]:,} bytes down in all,
{totals["forwards"]:,.0f} forward-equivalents (forward passes over one example).
{labels}
## Use

```python
{OWN_HEAD if own_head else plain}
```

Texts were cut at {config.data.max_length} tokens.

## Data

```json
{json.dumps(data.provenance, indent=1, ensure_ascii=False)}
```
"""


def against(measures: Measures, baseline: Mapping[str, float | None]) -> str:
    """What a result is compared with, by the metric that decides: "untrained 0.333, ..."."""
    names = {"majority": measures.decides.chance}
    return ", ".join(
        f"{names.get(name) or name.replace('_', ' ')} {value:.3f}"
        for name, value in baseline.items()
        if value is not None
    )
