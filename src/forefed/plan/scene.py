"""What is planned for: a model, an adapter, the units one client trains, and its batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from forefed.core.settings import Settings, Slot
from forefed.data.tasks import Head
from forefed.gradients import ENGINES, GradientEngine
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.engine import AUTO_TOKENS, Rows
from forefed.gradients.exact_head import ExactHead
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.models.adapters import ADAPTERS, Adapter, TinyLora
from forefed.models.settings import ModelSettings

Precision = Literal["float32", "bfloat16", "float16", "float64", "int8", "int4"]


class Scene(Settings):
    """Everything that decides what a local step costs, but the engine."""

    model: ModelSettings = ModelSettings()
    adapter: Annotated[SerializeAsAny[Adapter], Slot(ADAPTERS, "which numbers are trained?")] = (
        TinyLora()
    )
    labels: Annotated[int, Field(ge=0)] | Literal["spans"] = 2
    """Classes; 0 for a language model, "spans" for answers to questions."""
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
        return tuple(f"class {i}" for i in range(self.labels))

    @property
    def head(self) -> Head | None:
        """What the model ends in, where the classes do not say it."""
        return "spans" if self.labels == "spans" else None


Engines = Annotated[
    tuple[SerializeAsAny[GradientEngine], ...],
    Slot(ENGINES, "which ways of getting a gradient?", many=True),
]


class Job(Settings):
    """One fresh process: a scene at one depth, and the engines to run on it."""

    scene: Scene
    layers: int | None = None
    """Blocks of the model to build, with random weights (None: the model itself)."""
    thorough: bool = True
    engines: Engines | None = None
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
    engines: Engines
    steps: tuple[Step, ...]
    """One for each engine."""


def units_of(scene: Scene, total: int) -> int | None:
    """How many of ``total`` units a client trains, where the scene says so."""
    if scene.split is not None:
        return -(-total // scene.split)
    return scene.units


def candidates(scene: Scene, elements: int, thorough: bool) -> list[GradientEngine]:
    """The engines that a plan compares. ``thorough``: with more directions and by differences too,
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
    engines: list[GradientEngine] = []
    for rows in sizes:
        if elements == 0:
            engines.append(ExactHead(micro_batch=rows))
            continue
        engines += [Backprop(micro_batch=rows), Checkpointed(micro_batch=rows)]
        engines.append(Forward(micro_batch=rows))
    if thorough and elements:
        rows = sizes[1] if len(sizes) > 2 else sizes[0]
        engines.append(Forward(micro_batch=rows, directions=4, tangents=4))
        if elements <= BASIS_LIMIT:
            tangents = min(8, elements)
            engines.append(Forward(micro_batch=rows, directions="all", tangents=tangents))
            engines.append(Forward(micro_batch=1, directions="all", tangents=1))
        engines.append(FiniteDifference(micro_batch=rows))
    return engines


BASIS_LIMIT = 256
"""Elements up to which the exact gradient by tangents is worth measuring."""


def with_precision(model: ModelSettings, precision: str) -> ModelSettings:
    """The same model in another number format; integers are for the frozen weights only."""
    change: dict[str, Any] = (
        {"dtype": "float32", "quantise": precision}
        if precision.startswith("int")
        else {"dtype": precision, "quantise": "none"}
    )
    return ModelSettings.model_validate({**model.model_dump(), **change})
