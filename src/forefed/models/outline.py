"""What ``check`` says of a model, remembered as long as nothing changes that it follows from.

Looking closely builds the model without its weights, for which transformers loads the code of every
architecture's surroundings: seconds. What came of it is kept in the user's cache, under a digest of
the files (name, size, time of change), the settings, the task and the versions. A fault is never
remembered, and a run never reads this: it looks itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from forefed.core.files import write_atomic
from forefed.core.installed import version
from forefed.core.places import user_cache
from forefed.core.types import Json
from forefed.data.tasks import Head
from forefed.models.inspect import Facts, look
from forefed.models.load import check_model
from forefed.models.place import find
from forefed.models.settings import ModelSettings
from forefed.models.unchanged import state_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outline:
    """A model as its configuration and its weights' headers describe it.

    ``positions``: tokens that it has positions for; None where it counts none. ``notes``: sentences
    that a person should read before training.
    """

    family: str
    parameters: int
    weights_bytes: int
    layers: int
    hidden: int
    vocabulary: int
    positions: int | None
    notes: tuple[str, ...]


def outline(
    settings: ModelSettings, label_names: Sequence[str] | None = None, head: Head | None = None
) -> Outline:
    """What can be said of a model without reading its weights.

    Args:
        head: what it is to end in, for the classes ``label_names``; None: whether it fits any task
            is not asked.

    Raises:
        UserError: no such model, files that cannot be one; what ``load.check_model`` says.
    """
    device = settings.device in ("cpu", "auto")  # another one may be gone tomorrow
    place = _place(settings, label_names, head) if device else None
    known = None if place is None else _read(place)
    if known is not None:
        return known
    if head is None:
        facts = look(settings)
        found = _of(facts, (facts.note,) if facts.note else ())
    else:
        found = _of(*check_model(settings, label_names, head))
    if place is not None:
        try:
            write_atomic(place, json.dumps(asdict(found)).encode())
        except OSError as error:
            _LOG.debug("%s is not kept: %s", place, error)
    return found


def _of(facts: Facts, notes: tuple[str, ...]) -> Outline:
    return Outline(
        facts.family,
        facts.parameters,
        facts.weights_bytes,
        facts.layers,
        facts.hidden,
        facts.vocabulary,
        facts.positions,
        notes,
    )


def _place(
    settings: ModelSettings, label_names: Sequence[str] | None, head: Head | None
) -> Path | None:
    """Where it is remembered; None where nothing can be."""
    where = find(settings)
    try:
        folder = user_cache() / "models"
        files, code = state_of(where.folder), state_of(Path(__file__).parent)
    except (RuntimeError, OSError):  # nobody's home; a file that cannot be seen: whoever looks says
        return None
    follows_from: Json = {
        "versions": [version(name) for name in ("torch", "transformers", "tokenizers")],
        "code": code,
        "files": files,
        "place": [str(where.folder.resolve()), where.note],
        "settings": settings.model_dump(mode="json"),
        "task": [None if label_names is None else list(label_names), head],
    }
    digest = hashlib.sha256(json.dumps(follows_from).encode()).hexdigest()
    return folder / f"{digest[:32]}.json"


def _read(place: Path) -> Outline | None:
    """What stands there; None: nothing, or nothing whole."""
    try:
        said = json.loads(place.read_text(encoding="utf-8"))
        return Outline(**{**said, "notes": tuple(said["notes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
