"""What a model's folder holds, without its weights: what ``check`` says and loading relies on."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.types import Json
from forefed.models.place import explained, find, portable_name, quiet
from forefed.models.settings import ModelSettings
from forefed.models.unchanged import while_unchanged

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENISERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model"),
    *("sentencepiece.bpe.model", "spm.model", "tekken.json", "vocab.model", "source.spm"),
)
"""Files of which a tokeniser needs at least one."""
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
)
"""Numbers of a configuration that are 1 or more, under the names that transformers gives them."""
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header of its file describes it."""

    file: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Facts:
    """What is known of a model before its weights are read."""

    name: str
    """Without this machine's paths."""
    folder: Path
    config: Any
    """transformers' configuration of it, as it stands in the file."""
    raw: Json
    """The configuration file itself: what it says, and what it leaves out."""
    tensors: Mapping[str, Tensor]
    """Of the checkpoint, by name; none where only a configuration is there."""
    note: str = ""

    @property
    def family(self) -> str:
        """transformers' name of the architecture: "bert", "llama"."""
        return str(self.config.model_type)

    @property
    def architecture(self) -> str | None:
        """The class that the weights were saved from: "BertForMaskedLM"."""
        names = self.raw.get("architectures") or [None]
        return names[0]

    @property
    def head(self) -> str | None:
        """What that class ends in: "classification", "causal_lm", "masked_lm", "spans", "tokens" or
        "body" (nothing); None where it is not said."""
        endings = {
            "SequenceClassification": "classification",
            "CausalLM|LMHeadModel": "causal_lm",
            "MaskedLM|PreTraining": "masked_lm",
            "QuestionAnswering": "spans",
            "TokenClassification": "tokens",
            "Model|EncoderModel": "body",
        }
        name = self.architecture or ""
        return next((h for e, h in endings.items() if re.search(f"({e})$", name)), None)

    @property
    def decoder(self) -> bool:
        """Does each token see only those before it? (As far as the configuration tells.)"""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        known = self.family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        return known and bool(getattr(self.config, "is_decoder", True))

    @property
    def layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def hidden(self) -> int:
        return int(self.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def positions(self) -> int | None:
        """Tokens that the model has positions for; None where it counts none."""
        return longest_text(self.config)

    @property
    def parameters(self) -> int:
        return sum(x.size for x in self.tensors.values())

    @property
    def weights_bytes(self) -> int:
        return sum(x.size * _BYTES.get(x.dtype, 1) for x in self.tensors.values())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the checkpoint's head; none where they are not told."""
        named = self.raw.get("id2label") or {}
        return tuple(named[i] for i in sorted(named, key=int))

    @cached_property
    def pooling(self) -> Json | None:
        """``1_Pooling/config.json``, with which a sentence encoder says how it pools."""
        path = self.folder / "1_Pooling" / "config.json"
        return read_object(path) if path.is_file() else None


def look(settings: ModelSettings, weights: bool = True) -> Facts:
    """What there is to know of a model without reading its weights.

    Args:
        weights: must there be weights and a tokeniser?

    Raises:
        UserError: no such model, or files that cannot be one; names the file.
    """
    return _looked(settings, weights)


def _look(settings: ModelSettings, weights: bool) -> Facts:
    place = find(settings)
    folder, name = place.folder, settings.name
    raw = _config_of(folder, name)
    _can_be_read(raw, name)
    config = read_config(folder, name)
    tensors: dict[str, Tensor] = {}
    if weights:
        tensors = dict(_headers(folder, name, raw))
        _has_tokeniser(folder, name)
    return Facts(portable_name(settings), folder, config, raw, tensors, place.note)


_looked = while_unchanged(_look, lambda facts: replace(facts, config=deepcopy(facts.config)))


def read_config(folder: Path, name: str) -> Any:
    """transformers' configuration, with every size in its range.

    Raises:
        UserError: a value that transformers does not take, or that makes no model.
    """
    import transformers

    with quiet(), explained(lambda why: f"model.name: the config.json of '{name}' is none ({why})"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        inner = config.get_text_config()
        sizes = {size: getattr(inner, size, None) for size in SIZES}
    for size, value in sizes.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(
                f"model.name: the config.json of '{name}' says {size} = {value!r}; it must be at "
                "least 1"
            )
    rows, pad = sizes["vocab_size"], getattr(inner, "pad_token_id", None)
    if rows is not None and pad is not None and not -1 <= pad < rows:
        raise UserError(
            f"model.name: the config.json of '{name}' says pad_token_id = {pad}, but the "
            f"vocabulary has tokens 0 to {rows - 1}; correct one of the two"
        )
    return config


def longest_text(config: Any) -> int | None:
    """Tokens that a model has positions for; None where it counts no positions."""
    inner = config.get_text_config()
    limit = getattr(inner, "max_position_embeddings", None)
    if limit is None:
        return None
    # RoBERTa and its kin count positions from behind the padding token's number
    shifted = inner.model_type in ("roberta", "xlm-roberta", "camembert", "longformer")
    return int(limit) - (inner.pad_token_id + 1 if shifted else 0)


def read_object(path: Path) -> Json:
    """A JSON file that holds an object.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0][:120]
        raise UserError(f"model.name: {path} cannot be read ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(
            f"model.name: {path} holds a JSON {_kind(value)} where an object {{...}} belongs"
        )
    return value


def _config_of(folder: Path, name: str) -> Json:
    path = folder / "config.json"
    if path.is_file():
        return read_object(path)
    if (folder / "adapter_config.json").is_file():
        base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        raise UserError(
            f"model.name: '{name}' is an adapter, not a model; name the base model that it is "
            f"for ('{base}')"
        )
    inside = sorted(p.parent for p in folder.glob("*/config.json"))
    snapshots = sorted(p.parent for p in folder.glob("snapshots/*/config.json"))
    found = [p for p in (*snapshots, *inside) if p.name != "1_Pooling"]
    hint = f"; did you mean '{found[0]}'?" if found else ""
    raise UserError(f"model.name: the folder '{name}' has no config.json of a model{hint}")


def _can_be_read(raw: Json, name: str) -> None:
    """Refuses, in a sentence of its own, what would need foreign code or another loader."""
    from transformers import CONFIG_MAPPING

    where = f"model.name: the config.json of '{name}'"
    kind = raw.get("model_type")
    if kind is None:
        raise UserError(f'{where} has no model_type, for example "bert"')
    if not isinstance(kind, str):
        raise UserError(f'{where} says model_type = {kind!r}; a text such as "bert" belongs there')
    if kind not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise UserError(
                f"model.name: '{name}' brings code of its own (auto_map), which is never run; "
                "choose a model whose architecture transformers has built in"
            )
        raise UserError(
            f"{where} says model_type = '{kind}', which this version of transformers does not know"
        )
    if raw.get("quantization_config"):
        raise UserError(
            f"model.name: '{name}' is stored quantised (quantization_config); give the model in "
            "full precision, and set model.quantise for fewer bits"
        )
    objects = {"id2label": dict, "label2id": dict, "architectures": list}
    for key, wanted in objects.items():
        value = raw.get(key)
        if value is not None and not isinstance(value, wanted):
            should = "an object {...}" if wanted is dict else "a list [...]"
            raise UserError(f"{where} has a {_kind(value)} as {key} where {should} belongs")
    if not all(isinstance(n, str) for n in raw.get("architectures") or ()):
        raise UserError(f'{where} has an architectures that is not like ["BertModel"]')
    named = raw.get("id2label") or {}
    if not all(isinstance(k, str) and k.isdecimal() for k in named) or not all(
        isinstance(v, str) for v in named.values()
    ):
        raise UserError(f'{where} has an id2label that is not like {{"0": "a", "1": "b"}}')


def _has_tokeniser(folder: Path, name: str) -> None:
    if not any((folder / file).is_file() for file in TOKENISERS):
        raise UserError(
            f"model.name: '{name}' has no tokeniser's files (tokenizer.json, vocab.txt, "
            "spiece.model or the like); copy those of the model that the weights come from"
        )


def _headers(folder: Path, name: str, raw: Json) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint's files, from their headers."""
    from safetensors import SafetensorError, safe_open

    found = 0
    for file in _files(folder, name, raw):
        path = folder / file
        with path.open("rb") as opened:
            start = opened.read(20)
        if start.startswith(b"version https://git"):
            raise UserError(
                f"model.name: {path} is a pointer of git-lfs, not the weights; fetch them "
                "(git lfs pull)"
            )
        try:
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (it is no dictionary)
                    part = opened.get_slice(key)
                    found += 1
                    yield key, Tensor(file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"model.name: {path} is damaged or cut short ({error}); fetch it anew"
            ) from None
    if not found:
        raise UserError(f"model.name: the weights of '{name}' hold no tensor; fetch them anew")


def _files(folder: Path, name: str, raw: Json) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        content = read_object(folder / INDEX)
        index, about = content.get("weight_map"), content.get("metadata")
        if (
            not isinstance(index, dict)
            or not all(isinstance(v, str) for v in index.values())
            or not isinstance(about, dict)
        ):
            raise UserError(
                f"model.name: {folder / INDEX} needs a weight_map of tensors and files, and "
                "metadata; fetch the model anew"
            )
        files = sorted(set(index.values()))
        outside = [f for f in files if Path(f).name != f]
        missing = [f for f in files if not (folder / f).is_file()]
        if outside or missing:
            raise UserError(
                f"model.name: '{(outside or missing)[0]}', which {INDEX} of '{name}' names, is not "
                "there; fetch the model anew"
            )
        return files
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(
        p.name for p in folder.glob("*.pt*")
    )
    pickles = [p for p in pickles if p.startswith(("pytorch_model", "model", "consolidated"))]
    if pickles:
        code = conversion(folder, raw)
        raise UserError(
            f"model.name: '{name}' has its weights in {pickles[0]}, a format that can carry "
            f"programs and is never opened; if you trust it, convert it once: {code}"
        )
    others = [p.name for s in ("gguf", "h5", "msgpack", "onnx") for p in folder.glob(f"*.{s}")]
    beside = f" ({others[0]} cannot be read)" if others else ""
    raise UserError(
        f"model.name: '{name}' has no {WEIGHTS} (nor {INDEX} with its parts){beside}; give a "
        "folder with the weights as safetensors"
    )


def conversion(folder: Path, raw: Json) -> str:
    """The command that writes a folder's pickled weights as safetensors."""
    kind = (raw.get("architectures") or ["AutoModel"])[0]
    code = (
        f"from transformers import {kind} as M; "
        f"M.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    )
    return f"python -c {shlex.quote(code)}"


def _kind(value: object) -> str:
    names = {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}
    return names.get(type(value), "null")
