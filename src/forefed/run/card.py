"""The model card that goes with an exported adapter: Markdown with the metadata the hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forefed.attacks import Hostile
from forefed.config.config import Config
from forefed.core.metrics import Measures, Metric
from forefed.core.types import Json
from forefed.data.prompts import ending
from forefed.models.export import Form
from forefed.models.load import portable_name
from forefed.models.objectives import Objective, objective_of
from forefed.report import words
from forefed.run import record
from forefed.run.build import whole_length


@dataclass(frozen=True)
class Trained:
    """What a card says of a run: classes, clients, where the rows come from, how well it does.

    ``summary``: of the run; None where it did not end. ``rounds``: done. ``own_head``: the class of
    transformers reads something else than the head was trained on. ``tested``: the last evaluations
    on clients' own rows. ``audited``: what ``forefed audit`` found.
    """

    labels: tuple[str, ...]
    clients: int
    provenance: Json
    rounds: int
    summary: Json | None = None
    own_head: bool = False
    tested: tuple[Json, ...] = ()
    audited: Json | None = None

    @staticmethod
    def of(folder: Path, rounds: int, summary: Json | None, own_head: bool) -> Trained:
        """As the run's record has it.

        Raises:
            UserError: the record is damaged.
        """
        lines = record.read_lines(folder, record.EVALUATIONS)
        own = ("clients", "personal")
        tested = {e["split"]: e for e in lines if e["split"] in own and e.get("clients")}
        audit = folder / record.AUDIT
        return Trained(
            tuple(record.label_names(folder)),
            record.read_json(folder / "partition.json")["clients"],
            record.read_json(folder / "environment.json")["data"],
            rounds,
            summary,
            own_head,
            tuple(tested.values()),
            record.read_json(audit) if audit.exists() else None,
        )


OWN_HEAD = (
    "plain PEFT cannot load it (and refuses it): its head reads another pooling of the tokens, or "
    "more layers, than the class of transformers does; load it by `forefed.load`, as below"
)
"""Of an export with a head of its own (``models.outside``)."""


def model_card(config: Config, run: Trained, tokenizer: Any, form: Form = "peft") -> str:
    """What was trained, how, how well it does, and how to use it (code that runs as it stands).

    Args:
        tokenizer: the model's.
        form: of the export.
    """
    base = portable_name(config.model)
    objective = objective_of(run.labels, config.data.task.head)
    classes = objective.classes
    labels = (
        "\n## Labels\n\n" + "\n".join(f"{i}. {n}" for i, n in enumerate(classes)) + "\n"
        if classes
        else ""
    )
    what = {
        "peft": f"A PEFT adapter ({config.adapter.kind}) for `{base}`",
        "lora": f"A LoRA ({config.adapter.kind}, rank {getattr(config.adapter, 'r', 0)}) for "
        f"`{base}`",
        "model": f"`{base}` with an adapter ({config.adapter.kind}) merged into its weights",
        "gguf": f"`{base}` with an adapter ({config.adapter.kind}) merged into its weights, for "
        "llama.cpp: the changed matrices at 16 bits, all else as in the base's file",
        "onnx": f"`{base}` with an adapter ({config.adapter.kind}) merged into its weights, as an "
        "ONNX graph from a text's tokens to logits",
    }[form]
    seen = config.channel.told()
    attack = config.attack.told() if isinstance(config.attack, Hostile) else ""
    # of "peft" a hub shows code of its own, which would not do
    own_head = run.own_head and form != "onnx"  # whose graph has it
    library = {"model": "transformers", "gguf": "gguf", "onnx": "onnx"}.get(
        form, "forefed" if own_head else "peft"
    )
    told = (attack, config.sharing.told(), OWN_HEAD if own_head else "")
    caution = "".join(f"**Mind**: {t}.\n\n" for t in told if t)
    return f"""---
library_name: {library}
tags: [forefed, federated-learning]
---

# {config.name}

{what}, trained by Forefed with
`{config.strategy.name}` over {run.clients} simulated clients, {config.cohort} per round,
{run.rounds} rounds.{f" {seen}" if seen else ""}

{caution}{_outcome(config, run, objective)}
{_clients(run, objective)}{_audit(run)}{labels}
## Use

```python
{recipe(config, run, tokenizer, form)}
```

{_lengths(config, tokenizer, run)}

## Data

```json
{json.dumps(run.provenance, indent=1, ensure_ascii=False)}
```
"""


def _lengths(config: Config, tokenizer: Any, run: Trained) -> str:
    whole, reads = (
        whole_length(config, tokenizer, run.provenance["columns"]),
        config.data.max_length,
    )
    if whole is None or whole <= reads:
        return f"Texts were cut at {reads} tokens."
    return f"The model read {reads} tokens of a text; its words were counted in {whole}."


def recipe(config: Config, run: Trained, tokenizer: Any, form: Form = "peft") -> str:
    """Python that loads an export and uses it, beside the export's folder."""
    task, base = config.data.task, portable_name(config.model)
    objective = objective_of(run.labels, task.head)
    if form == "gguf":
        said = task.recipe(tokenizer, run.provenance["columns"], run.labels) or ""
        return _with_llama_cpp("apply_chat_template" in said)
    two = len(task.asked(run.provenance["columns"])) > 1
    texts = '[("a text", "another one"), ("a text", "a third")]' if two else '["a text", "another"]'
    whole = whole_length(config, tokenizer, run.provenance["columns"])
    settings = [f"longest = {max(config.data.max_length, whole or 0)}"]
    columns = run.provenance["columns"]
    if form == "onnx":
        lines = task.numpy_recipe(tokenizer, columns, run.labels) or ""
        lines = LOGITS_OF_TOKENS + lines if lines else LOGITS_OF_GRAPH + objective.numpy_recipe()
        return f"""{GRAPH_LOADING}

texts = {texts}
{settings[0]}
{lines}"""
    lines = task.recipe(tokenizer, columns, run.labels) or objective.recipe()
    settings += [f"ends = {ending(tokenizer)}"] if " ends" in lines else []
    if "longest_answer" in lines:
        settings.append(f"longest_answer = {getattr(task, 'longest_answer', 30)}")
    return f"""{_loading(objective, base, form, run.own_head)}

texts = {texts}
{chr(10).join(settings)}
{lines}"""


GRAPH_LOADING = """import json

import numpy
import onnxruntime
from tokenizers import Tokenizer

folder = "adapter"  # the folder of this file
config = json.load(open(f"{folder}/config.json", encoding="utf-8"))
names = [config.get("id2label", {}).get(str(i)) for i in range(len(config.get("id2label", {})))]
model = onnxruntime.InferenceSession(f"{folder}/model.onnx")
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")"""
LOGITS_OF_GRAPH = """tokenizer.enable_truncation(longest)
tokenizer.enable_padding(pad_id=config["pad_token_id"])
read = tokenizer.encode_batch(texts)
inputs = {
    "input_ids": [x.ids for x in read],
    "attention_mask": [x.attention_mask for x in read],
    "token_type_ids": [x.type_ids for x in read],
}
asked = [x.name for x in model.get_inputs()]
(logits,) = model.run(None, {n: numpy.array(inputs[n], "int64") for n in asked})
"""
"""The lines of a recipe that read texts by an exported graph."""
LOGITS_OF_TOKENS = """

def logits_of(ids):  # of the next token, behind each of these: computed anew for every one
    row = numpy.array([ids], "int64")
    return model.run(None, {"input_ids": row, "attention_mask": numpy.ones_like(row)})[0][0]


"""
"""The same of a language model's graph."""


def _with_llama_cpp(templated: bool) -> str:
    """As ``recipe``, by llama.cpp's Python package."""
    say = 'said = model(text, max_tokens=100, temperature=0)["choices"][0]["text"]'
    if templated:
        say = """messages = [{"role": "user", "content": text}]
    answer = model.create_chat_completion(messages, temperature=0, max_tokens=100)
    said = answer["choices"][0]["message"]["content"]"""
    return f"""from pathlib import Path

from llama_cpp import Llama

folder = "adapter"  # the folder of this file
model = Llama(str(next(Path(folder).glob("*.gguf"))), verbose=False)
for text in ["a text", "another"]:
    {say}
    print(text, "->", said)"""


def _loading(objective: Objective, base: str, form: Form, own_head: bool) -> str:
    """The lines that end in a tokeniser, a model and its configuration."""
    folder = 'folder = "adapter"  # the folder of this file'
    place = f'base = "{base}"  # an id of the hub, or the local folder of the base model'
    if own_head:
        return f"""import torch
import forefed

{folder}
{place}
# Without forefed the class of transformers would read another pooling than the head stands on.
loaded = forefed.load(folder, base)
tokenizer, model, config = loaded.tokenizer, loaded.model, loaded.model.config"""
    auto, whole = objective.auto, form == "model"
    load = f'{auto}.from_pretrained(folder, dtype="float32").eval()'
    if not whole:
        load = (
            f'{auto}.from_pretrained(base, config=config, dtype="float32")\n'
            "model = PeftModel.from_pretrained(model, folder).eval()"
        )
    peft = "" if whole else "from peft import PeftModel\n"
    return f"""import torch
{peft}from transformers import AutoConfig, {auto}, AutoTokenizer

{folder}
{"" if whole else place}
config = AutoConfig.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {load}"""


def _outcome(config: Config, run: Trained, objective: Objective) -> str:
    """How well it does and what it cost, or that it never came to an end."""
    summary = run.summary
    if summary is None:
        return (
            f"**The run did not end**: this is round {run.rounds} of {config.rounds}, and how well "
            "it does was not measured."
        )
    final, measures, totals = summary["final"], objective.measures, summary["totals"]
    beside = against(measures, summary["baseline"])
    ended = summary["status"]
    warning = f"**The run ended as '{ended}'**; its export was asked for all the same.\n\n"
    low, high = final.get("low"), final.get("high")
    ends = (
        "no interval is known"
        if low is None or high is None
        else (f"95 % interval for other test {measures.terms}: {low:.3f} to {high:.3f}")
    )
    tested = f"{measures.said(final)} on {final['n']} test {measures.terms} ({beside})"
    return f"""{"" if ended == "finished" else warning}Result: {tested}.
One seed ({config.seed}); {ends}.

{_privacy(summary)}Cost: {totals["bytes_up"]:,} bytes up and {totals["bytes_down"]:,} bytes down
in all, {totals["forwards"]:,.0f} forward-equivalents (forward passes over one example)."""


def _privacy(summary: Json) -> str:
    """What was promised of the clients' data; nothing where nothing was."""
    texts = [str(s["text"]) for s in summary.get("privacy", [])]
    if not texts:
        return ""
    lines = "\n".join(f"- {text}." for text in texts)
    return (
        f"Privacy, of the training rows alone (test rows and the clip bound are not covered):\n"
        f"\n{lines}\n\n"
    )


def _clients(run: Trained, objective: Objective) -> str:
    """How the result spreads over the clients; nothing where none was tested."""
    decides, rows = objective.measures.decides, ""
    for line in run.tested:
        keys = ("client_mean", "client_decile", "client_worst")
        told = (words.quality(decides, Metric(key, key).of(line), unit=False) for key in keys)
        model = "each with its own" if line["split"] == "personal" else "this one"
        rows += f"| {model} | {line['clients']:,} | {line['round']:,} | {' | '.join(told)} |\n"
    if not rows:
        return ""
    head = "| model | clients | round | mean | a tenth at most | worst |"
    return (
        f"\n## Clients\n\n{decides.title} on the clients' own test rows:\n\n{head}\n"
        f"| --- | --: | --: | --: | --: | --: |\n{rows}"
    )


def _audit(run: Trained) -> str:
    """What attacks on the run's messages found; nothing where no audit was made."""
    if run.audited is None:
        return ""
    found = run.audited["sentences"] or ["no attack did better than a guess on these trials"]
    lines = "\n".join(f"- {text}" for text in found)
    return (
        f"\n## Audit\n\nAttacks of a curious server on messages of a client (`forefed audit`, "
        f"{run.audited['trials']} messages each):\n\n{lines}\n"
    )


def against(measures: Measures, baseline: Mapping[str, float | None]) -> str:
    """What a result is compared with, by the metric that decides: "untrained 0.333, ..."."""
    return ", ".join(
        f"{measures.baseline_name(name)} {value:.3f}"
        for name, value in baseline.items()
        if value is not None
    )
