"""What happens before the first round: sums that clients compute in one forward pass."""

from forefed.core.settings import Registry
from forefed.start.closed_form import Auto, ClosedForm, one_text, start_of, words_of
from forefed.start.start import NoStart, Start

STARTS: Registry[Start] = Registry("start", [Auto, NoStart, ClosedForm])

__all__ = ["STARTS", "Auto", "ClosedForm", "NoStart", "Start", "one_text", "start_of", "words_of"]
