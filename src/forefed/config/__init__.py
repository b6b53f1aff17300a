"""What decides a run: its settings, what they exclude, what there is to choose from."""

from forefed.config.config import Config, configure, register

__all__ = ["Config", "configure", "register"]
