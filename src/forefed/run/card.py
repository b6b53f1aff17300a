"""The model card that goes with an exported adapter: Markdown with the metadata the hub reads."""

from __future__ import annotations

import json

from forefed.core.types import Json
from forefed.data.prepare import Prepared
from forefed.models.load import portable_name
from forefed.run.config import Config


def model_card(config: Config, data: Prepared, summary: Json) -> str:
    """What the adapter is, how it was trained, how well it does, and how to load it."""
    base = portable_name(config.model)
    final, baseline = summary["final"], summary["baseline"]
    if "accuracy" in final:
        score = (
            f"accuracy {final['accuracy']:.3f} on {final['n']} test examples "
            f"(majority class {baseline['majority']:.3f}, untrained {baseline['untrained']:.3f})"
        )
        auto = "AutoModelForSequenceClassification"
        arguments = f"base, num_labels={len(data.label_names)}"
    else:
        score = (
            f"{final['bits_per_byte']:.3f} bits per byte on the test texts "
            f"(untrained {baseline['untrained']:.3f})"
        )
        auto, arguments = "AutoModelForCausalLM", "base"
    totals = summary["totals"]
    labels = (
        "\n## Labels\n\n" + "\n".join(f"{i}. {n}" for i, n in enumerate(data.label_names)) + "\n"
        if data.label_names
        else ""
    )
    return f"""---
library_name: peft
tags: [forefed, federated-learning]
---

# {config.name}

A PEFT adapter ({config.adapter.kind}) for `{base}`, trained by Forefed with
`{config.strategy.name}` over {data.population.size} simulated clients, {config.cohort} per round,
{summary["rounds"]} rounds.

Result: {score}. One seed ({config.seed}); no interval is known.

Cost: {totals["bytes_up"]:,} bytes up and {totals["bytes_down"]:,} bytes down in all,
{totals["forwards"]:,.0f} forward-equivalents (forward passes over one example).
{labels}
## Use

```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

base = "..."  # {base}: a local folder or a hub id
model = {auto}.from_pretrained({arguments})
model = PeftModel.from_pretrained(model, "adapter")
```

Texts were cut at {config.data.max_length} tokens.

## Data

```json
{json.dumps(data.provenance, indent=1, ensure_ascii=False)}
```
"""
