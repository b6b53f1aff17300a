"""Hugging Face models with PEFT adapters, as pure loss functions of their trainable tensors."""

from forefed.models.adapters import ADAPTERS, Adapter, HeadOnly, Lora, TinyLora
from forefed.models.settings import ModelSettings

__all__ = ["ADAPTERS", "Adapter", "HeadOnly", "Lora", "ModelSettings", "TinyLora"]
