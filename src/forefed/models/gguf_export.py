"""A trained model as a GGUF file, where its base came from one.

Nothing is converted: the base's file is copied, its vocabulary, template and tensors as they are
(bits included), and only the matrices that training has changed are written anew, at 16 bits (at 32
where the file has them so). So whatever runs the base's file runs this one. Where a tensor of the
file cannot be told in the loaded model (the loader of an architecture adds or turns something),
nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forefed.core.errors import UserError

Array = NDArray[Any]


def save_gguf(
    base: Mapping[str, torch.Tensor], merged: Any, source: Path, file: Path, name: str
) -> int:
    """Writes the merged model as ``file``.

    Args:
        base: the tensors that training may have changed, as they were, by the merged model's names.
        merged: the model of transformers with the update in its weights.
        source: the GGUF file that the base came from.
        name: what the file calls the model.

    Returns:
        How many tensors differ from the base's.

    Raises:
        UserError: a tensor of the file is not found in the model.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize

    reader = GGUFReader(source)
    names = dict(_names(merged))
    heads = merged.config.num_attention_heads
    kv = getattr(merged.config, "num_key_value_heads", None) or heads
    now = merged.state_dict()
    writer = GGUFWriter(file, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.name"):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], inner)
    writer.add_name(name)
    changed = 0
    for tensor in reader.tensors:
        ours = names.get(tensor.name)
        if ours is None or ours not in base or torch.equal(base[ours], now[ours]):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        old = dequantize(tensor.data, tensor.tensor_type)
        turn = _turn(old, base[ours].float().numpy(), (heads, kv))
        if turn is None:
            raise UserError(
                f"export: --as gguf: the tensor '{tensor.name}' of {source.name} stands in the "
                "model in another form, so the trained one cannot be put back; take --as model and "
                "llama.cpp's own converter"
            )
        changed += 1
        new = np.ascontiguousarray(turn(now[ours].float().numpy()))
        whole = new.ndim == 1 or tensor.tensor_type == GGMLQuantizationType.F32
        kind = GGMLQuantizationType.F32 if whole else GGMLQuantizationType.F16
        writer.add_tensor(
            tensor.name, new.astype(np.float32 if whole else np.float16), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


def _names(model: Any) -> Iterator[tuple[str, str]]:
    """The model's name of every tensor of a GGUF file."""
    from transformers.integrations import ggml  # noqa: F401  (fills the tables)
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    architecture = model.config.model_type
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    yield from get_gguf_hf_weights_map(model, processor).items()


def _turn(file: Array, model: Array, heads: tuple[int, int]) -> Callable[[Array], Array] | None:
    """From the model's form of a tensor to the file's: as it is, or with the two halves of every
    head's rows interleaved, as llama.cpp's rotary embedding wants them; None: neither."""

    def interleaved(n: int) -> Callable[[Array], Array]:
        return lambda x: (
            x.reshape(n, 2, len(x) // n // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        )

    turns: list[Callable[[Array], Array]] = [lambda x: x]
    turns += [interleaved(n) for n in heads if len(model) % (2 * n) == 0]
    if file.shape != model.shape:
        return None
    return next((turn for turn in turns if np.array_equal(turn(model), file)), None)
