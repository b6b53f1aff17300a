"""What is planned for: a model, an adapter, the units one client trains, and its batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializeAsAny

from forefed.core.settings import Settings, Slot
from forefed.core.types import Order
from forefed.data.tasks import Head
from forefed.directions import DIRECTIONS, Basis, Directions, Fresh
from forefed.gradients import ENGINES, GradientEngine
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.engine import AUTO_TOKENS, Rows
from forefed.gradients.exact_head import ExactHead
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.gradients.structured import Structured
from forefed.models.adapters import ADAPTERS, Adapter, TinyLora
from forefed.models.settings import ModelSettings

Precision = Literal["float32", "bfloat16", "float16", "float64", "int8", "int4"]


WORDS = 2
"""Classes of a plan for ``choice``: a language model computes the logits of all words anyway."""


class Scene(Settings):
    """Everything that decides what a local step costs, but the engine."""

    model: ModelSettings = ModelSettings()
    adapter: Annotated[SerializeAsAny[Adapter], Slot(ADAPTERS, "which numbers are trained?")] = (
        TinyLora()
    )
    labels: Annotated[int, Field(ge=0)] | Literal["spans", "words"] = 2
    """Classes; 0 for a language model, "spans" for answers to questions, "words" for classes that
    its own head scores (their number costs nothing)."""
    batch: Annotated[int, Field(ge=1)] = 8
    seq: Annotated[int, Field(ge=2)] = 128
    """Tokens per text; plan for the longest."""
    units: Annotated[int, Field(ge=1)] | None = None
    """Units that one client trains beside the head (None: those of an eighth of the blocks)."""
    split: Annotated[int, Field(ge=1)] | None = None
    """Instead of ``units``: clients who share all units out among them (1: each trains all)."""
    place: Literal["early", "late"] = "early"
    """"early": the client whose units come first, the dearest place for every engine."""

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names for the classes, where there are any."""
        if self.labels == "spans" or self.labels == 0:
            return None
        classes = WORDS if self.labels == "words" else self.labels
        return tuple(f"class {i}" for i in range(classes))

    @property
    def head(self) -> Head | None:
        """What the model ends in, where the classes do not say it."""
        heads = {"spans": "spans", "words": "choice"}
        return heads.get(self.labels) if isinstance(self.labels, str) else None


class Way(Settings):
    """A way of getting a gradient: an engine, and the directions along which it walks."""

    engine: Annotated[
        SerializeAsAny[GradientEngine], Slot(ENGINES, "how does a client get a gradient?")
    ]
    directions: Annotated[
        SerializeAsAny[Directions], Slot(DIRECTIONS, "along which directions are slopes taken?")
    ] = Fresh()

    @property
    def name(self) -> str:
        """``forward, K = 4``; "all": unit vectors."""
        if not self.engine.estimates:
            return self.engine.kind
        k = "all" if self.directions.exact else self.slopes(1)
        return f"{self.engine.kind}, K = {k}"

    def slopes(self, elements: int) -> int:
        """Numbers of an answer about so many elements: K slopes, or every element."""
        if not self.engine.estimates:
            return elements
        like = {"": torch.empty(elements, device="meta")}
        return self.directions.of(_ANY, parts=self.parts).count(like)

    @property
    def parts(self) -> int:
        """Of a batch that have directions of their own."""
        return getattr(self.engine, "sub_batches", 1)

    def noise(self, elements: int) -> float:
        """v = E|estimate - gradient|^2 / |gradient|^2; 0 for an exact engine."""
        if not self.engine.estimates:
            return 0.0
        return self.directions.of(_ANY, parts=self.parts).noise(elements, self.parts)


_ANY = Order(0, 0, 0, (), {})


class Job(Settings):
    """One fresh process: a scene at one depth, and the ways of getting a gradient to run on it."""

    scene: Scene
    layers: int | None = None
    """Blocks of the model to build, with random weights (None: the model itself)."""
    thorough: bool = True
    ways: tuple[Way, ...] | None = None
    """None: all candidates."""


class Step(Settings):
    """What one local step took."""

    peak: int
    """Live allocator bytes above what lived before, at most."""
    rss: int
    """Resident memory of the process, at most."""
    seconds: float


class Measured(Settings):
    """The answer to a job."""

    blocks: int
    weights: int
    """Bytes of all parameters and buffers."""
    all_units: int
    units: int
    """Units that the client trains, beside the head."""
    elements: int
    """Their elements: the dimension of the client's problem."""
    head_elements: int
    base_rss: int
    """Resident memory of Python and its libraries, before the model."""
    inference: Step
    ways: tuple[Way, ...]
    steps: tuple[Step, ...]
    """One for each way."""


def units_of(scene: Scene, total: int) -> int | None:
    """How many of ``total`` units a client trains, where the scene says so."""
    if scene.split is not None:
        return -(-total // scene.split)
    return scene.units


def candidates(scene: Scene, elements: int, thorough: bool) -> list[Way]:
    """What a plan compares. ``thorough``: with more directions and by differences too,
    and with the whole batch at once."""
    sizes: list[Rows] = [1]
    # A number of rows, not "auto": that would be more rows, and more tokens, for shorter texts.
    some = AUTO_TOKENS // scene.seq
    if 1 < some < scene.batch:
        sizes.append(some)
    if scene.batch > 1:
        sizes.append(None)
    if not thorough:
        sizes = sizes[:2]
    found: list[tuple[GradientEngine, Directions]] = []
    for rows in sizes:
        if elements == 0:
            found.append((ExactHead(micro_batch=rows), Fresh()))
            continue
        found.append((Backprop(micro_batch=rows), Fresh()))
        found.append((Checkpointed(micro_batch=rows), Fresh()))
        found.append((Structured(micro_batch=rows), Fresh()))
        found.append((Forward(micro_batch=rows), Fresh(k=1)))
    if thorough and elements:
        rows = sizes[1] if len(sizes) > 2 else sizes[0]
        found.append((Forward(micro_batch=rows, tangents=4), Fresh(k=4)))
        if elements <= BASIS_LIMIT:
            tangents = min(8, elements)
            found.append((Forward(micro_batch=rows, tangents=tangents), Basis()))
            found.append((Forward(micro_batch=1, tangents=1), Basis()))
        found.append((FiniteDifference(micro_batch=rows), Fresh(k=1)))
    return [Way(engine=engine, directions=directions) for engine, directions in found]


BASIS_LIMIT = 256
"""Elements up to which the exact gradient by tangents is worth measuring."""


def with_precision(model: ModelSettings, precision: str) -> ModelSettings:
    """The same model in another number format; integers are for the frozen weights only."""
    change: dict[str, Any] = (
        {"dtype": "float32", "quantise": precision}
        if precision.startswith("int")
        else {"dtype": precision, "quantise": "none", "weights": "memory"}
    )
    return ModelSettings.model_validate({**model.model_dump(), **change})
