"""The checkpoint: one safetensors file with everything a run needs to go on bit for bit.

Tensors: those of the state (RunState: "params/...", "server/..." and so on), "log/..." for what
clients need to catch up, "client/<id>/..."; the header's metadata holds, as one JSON text (several
entries would be written in any order), the format version, the finished rounds, the digest of the
configuration and a digest of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save

from forefed.config.config import Config
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.types import Params
from forefed.federation.inprocess import ClientStore
from forefed.federation.state import RunState, below
from forefed.wire.records import RecordLog

FORMAT = "3"
FILE = "checkpoint.safetensors"
BEST = "checkpoint-best.safetensors"
"""The parameters alone, of the best evaluation so far."""


@dataclass(frozen=True)
class Checkpoint:
    state: RunState
    clients: ClientStore


def config_digest(config: Config) -> str:
    """Digest of what decides a run's numbers (not of where it is stored or how often saved)."""
    content = config.model_dump_json(exclude={"name", "out", "checkpoint_every", "workers"})
    return hashlib.sha256(content.encode()).hexdigest()


def save_best(folder: Path, config: Config, state: RunState) -> None:
    """Keep these parameters as the best so far."""
    save_checkpoint(folder, config, RunState(state.round, state.params), ClientStore(), BEST)


def save_checkpoint(
    folder: Path, config: Config, state: RunState, clients: ClientStore, file: str = FILE
) -> None:
    """Write the checkpoint of a run, replacing the former one atomically."""
    tensors: Params = {}
    for prefix, tree in (
        ("", state.flat()),
        ("log/", state.log.tensors()),
        ("client/", clients.flat()),
    ):
        tensors |= {prefix + name: x.contiguous().clone() for name, x in tree.items()}
    about = {
        "format": FORMAT,
        "round": state.round,
        "config": config_digest(config),
        "digest": trees.digest(tensors),
    }
    write_atomic(folder / file, save(tensors, {"forefed": json.dumps(about)}))


def load_checkpoint(
    folder: Path,
    config: Config,
    device: torch.device,
    file: str = FILE,
    to_go_on: bool = True,
) -> Checkpoint | None:
    """The checkpoint of a run (``file``: BEST for its best parameters), or None when it never
    finished a round.

    Args:
        to_go_on: with exactly these settings. A version of this package that knows more settings
            reads ``config.json`` as another configuration, and can use the parameters all the same.

    Raises:
        UserError: damaged, of another format version, or ``to_go_on`` of another configuration.
    """
    path = folder / file
    if not path.exists() and not path.is_symlink():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get("forefed", "{}"))
        tensors = load_file(path)
        if not isinstance(about, dict):
            raise ValueError("its metadata is no table")
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: the checkpoint is damaged ({error}); it was left as it is. Restore it from a "
            "copy, or start the run anew under another name"
        ) from None
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {about.get('format', 'unknown')!r}; this version reads "
            f"format {FORMAT!r}. Use the version that wrote it, or start anew under another "
            "name"
        )
    if about.get("digest") != trees.digest(tensors):
        raise UserError(
            f"{path}: the checkpoint is damaged (its digest does not match); it was left as it is. "
            "Restore it from a copy, or start the run anew under another name"
        )
    if to_go_on and about.get("config") != config_digest(config):
        raise UserError(
            f"{folder}: the run was started with other settings (see {folder / 'config.json'}), or "
            "by a version of forefed that had others (see environment.json); go on with the same "
            "ones, or give this run another name"
        )
    round = about.get("round")
    if not isinstance(round, int) or round < 0:
        raise UserError(f"{path}: the checkpoint is damaged (round {round!r}); restore it")
    clients = ClientStore.unflat(below(tensors, "client"))
    log = RecordLog.of_tensors(below(tensors, "log"))
    moved = {n: x.to(device) for n, x in tensors.items() if not n.startswith(("client/", "log/"))}
    return Checkpoint(replace(RunState.of_flat(round, moved), log=log), clients)


def made_with(folder: Path, config: Config) -> bool:
    """Was the checkpoint written under exactly these settings? Also where there is none yet."""
    path = folder / FILE
    if not path.is_file():
        return True
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get("forefed", "{}"))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError):
        return True  # damage is said by who loads it
    return bool(about.get("config") == config_digest(config))


def check_fits(folder: Path, saved: RunState, params: Params) -> None:
    """A checkpoint has the parameters ``params`` that the model trains now.

    Raises:
        UserError: the model under this name, or the adapter's place in it, is another one.
    """
    was = {name: tuple(x.shape) for name, x in saved.params.items()}
    wanted = {name: tuple(x.shape) for name, x in params.items()}
    for name in sorted({*was, *wanted}):
        if was.get(name) != wanted.get(name):
            raise UserError(
                f"{folder}: the checkpoint does not fit the model any more ('{name}' has shape "
                f"{was.get(name)} there, and the model needs {wanted.get(name)}); restore the "
                "model, or start a new run (--set name=...)"
            )
