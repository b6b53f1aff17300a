"""A site's own configuration (site.toml), and what its owner allows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from forefed.channel import CHANNELS
from forefed.config.config import Config, configure
from forefed.core.errors import UserError
from forefed.core.settings import Settings, Slot, parse, travelling
from forefed.core.sizes import parse_bytes
from forefed.core.types import Json
from forefed.data.sources import SOURCES, Files, Source
from forefed.deploy.places import SITE, NodeSettings, read_toml

METRICS = ("loss", "steps", "skipped", "clamped", "forwards", "peak_bytes", "fallback")
"""Plain numbers that local training reports; the last one with the name of an operator."""


DIGEST = "digest"
"""Place of the digest among the settings that travel."""


class Refusal(Exception):
    """An order that this site's policy does not allow. The reason goes to the server: it is made of
    settings, never of data."""


Question = Literal["documents", "words", "sums", "products", "heads", "loss"]


class Policy(Settings):
    """What a site does for a server, and what it tells."""

    strategies: tuple[str, ...] = ()
    """Allowed strategies; none named: all."""
    max_epochs: Annotated[int, Field(ge=1)] | None = None
    """Local epochs of one round."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Local steps of one round: an order without client.max_steps is refused, too."""
    max_rounds: Annotated[int, Field(ge=1)] | None = None
    """Rounds of one run that this site takes part in."""
    min_examples: Annotated[int, Field(ge=1)] = 1
    """With fewer training examples the site takes no part."""
    min_rows: Annotated[int, Field(ge=1)] = 1
    """Of so many rows an update is made at least: an order whose client.max_steps times
    client.batch_size is less is refused. A step of one row is an open letter (``forefed audit``),
    and a server that wants to read may order it."""
    questions: tuple[Question, ...] = get_args(Question)
    """What is answered beside training: "sums" of features by class, from which the server solves
    the head (a class with one row here sends that row's features: see start.min_count); losses of
    held-out rows under several "heads", or under several parameters ("loss"); in how many rows each
    word is ("documents"), of "words" the same by class, and their "products" with what the server
    asks for (start.words; they tell which words a site uses)."""
    channels: tuple[Annotated[str, AfterValidator(lambda x: CHANNELS[x].kind_name())], ...] = (
        "plain",
        "secure_sum",
        "partial_sums",
    )
    """What the server may see of this site: its own contribution ("plain"; with "partial_sums" an
    aggregator between them sees it), or sums of a group."""
    min_group: Annotated[int, Field(ge=3)] = 5
    """Sites that a secure sum has at least."""
    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    """This site's privacy budget, over all runs and servers, for examples and for the site as a
    whole, each by itself: what would pass it is refused, and so is whatever has no noise. What was
    spent stands in privacy.jsonl beside site.toml."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """At which it is counted."""
    own_noise: bool = False
    """With a budget: noise counts only where this site adds it, or its share of it (dp_example,
    start.noise_by = "clients"). Otherwise the server's is believed, too."""
    metrics: tuple[str, ...] = METRICS
    """Numbers that an update may carry besides the count of examples; others are left out."""

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.own_noise and self.max_epsilon is None:
            raise ValueError("own_noise says which noise counts; set max_epsilon, which counts it")
        return self

    def check(self, config: Config) -> None:
        """Raises Refusal, with the reason."""
        name, client = config.strategy.name, config.client
        if self.strategies and name not in self.strategies:
            raise Refusal(f"strategy '{name}' is not allowed here")
        channel = config.channel
        if channel.kind not in self.channels:
            raise Refusal(f"channel '{channel.kind}' is not allowed here (policy.channels)")
        if channel.hides and channel.least < self.min_group:
            least = self.min_group
            raise Refusal(f"channel.min_group = {channel.least}, at least {least} here")
        if self.max_epochs is not None and client.epochs > self.max_epochs:
            raise Refusal(f"client.epochs = {client.epochs}, at most {self.max_epochs} here")
        if self.max_steps is not None and (client.max_steps or 2**62) > self.max_steps:
            raise Refusal(f"client.max_steps = {client.max_steps}, at most {self.max_steps} here")

        size, steps = client.batch_size, client.max_steps
        if isinstance(size, int) and steps is not None and size * steps < self.min_rows:
            raise Refusal(
                f"an update of {size * steps} rows (client.max_steps times client.batch_size), at "
                f"least {self.min_rows} here"
            )

    def allowed(self, metrics: dict[str, float]) -> dict[str, float]:
        """Of these metrics those that may leave."""
        return {n: x for n, x in metrics.items() if n.split("/")[0] in self.metrics}


class SiteData(Settings):
    """Where this site's rows are. The server never learns it."""

    source: Annotated[SerializeAsAny[Source], Slot(SOURCES, "where are this site's texts?")]
    columns: Mapping[str, str | list[str]] = Field(default_factory=dict)
    """This site's names of the task's columns (text, text1, text2, label, prompt, messages)."""


class SiteSettings(NodeSettings):
    """site.toml: everything that a site decides by itself."""

    data: SiteData | None = None
    models: Mapping[str, str] = Field(default_factory=lambda: {"minilm": "minilm"})
    """Models that may be trained: the name in the server's configuration, and what is loaded for
    it here (the same, or a folder)."""
    memory: (
        Annotated[int, BeforeValidator(lambda x: parse_bytes(x, "memory")), Field(ge=1)] | None
    ) = None
    """What weights and a training step may take here together ("4GB"). Told to the server of a run
    that asks for it, which gives this site an adapter of a rank that fits (``sharing.ranks =
    "auto"``), and to no other."""
    device: str = "cpu"
    """Where to compute: auto, cpu, cuda or mps."""
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if self.graph is not None:
            raise ValueError("a site with a graph reads no more of site.toml than its node does")
        if (self.data is None) == (self.script is None):
            raise ValueError(
                "a site has rows ([data.source]) or a script that has its own (script = "
                "'train.py'), and not both"
            )
        return self


def from_folder(data: SiteData, folder: Path) -> SiteData:
    """The same rows, a relative path of theirs being meant from ``folder``."""
    if not isinstance(data.source, Files):
        return data
    path = folder / data.source.path.expanduser()
    return data.model_copy(update={"source": data.source.model_copy(update={"path": path})})


def read_site(folder: Path) -> SiteSettings:
    """A site's settings; a relative data path is meant from the site's folder.

    Raises:
        UserError: no site there, or mistakes in its settings.
    """
    site = parse(SiteSettings, read_toml(folder / SITE, "site"), str(folder / SITE))
    data = None if site.data is None else from_folder(site.data, folder)
    script = None if site.script is None else folder / site.script.expanduser()
    return site.model_copy(update={"data": data, "script": script})


def for_sites(config: Config) -> str:
    """A run's configuration as it travels, as JSON: all of it but what is SERVER_ONLY, and a digest
    of that, by which a site notices that it understands something else."""
    told = travelling(config)
    return json.dumps({**told, DIGEST: _digest(told)}, separators=(",", ":"))


def at_site(settings: str, site: SiteSettings, folder: Path) -> Config:
    """The run's configuration as this site runs it: with its own data, model place and folder.

    Raises:
        Refusal: settings that this version does not know or understands otherwise, or that the
            site does not allow.
    """
    try:
        told = dict(json.loads(settings))
        digest = told.pop(DIGEST)
        config = configure(base=told)
    except (UserError, ValueError, TypeError, KeyError):
        raise Refusal("the run's settings are not known here; are the versions equal?") from None
    if _digest(travelling(config)) != digest:
        raise Refusal("the run's settings mean something else here; are the versions equal?")
    if config.model.name not in site.models:
        raise Refusal(f"model '{config.model.name}' is not allowed here")
    site.policy.check(config)
    place = {"name": site.models[config.model.name], "device": site.device}
    if site.data is None:
        return config.model_copy(update={"out": folder})  # the script has its own
    task = parse(
        type(config.data.task), {**config.data.task.model_dump(), **site.data.columns}, "columns"
    )
    data = config.data.model_copy(update={"source": site.data.source, "task": task})
    return config.model_copy(
        update={
            "model": parse(type(config.model), {**config.model.model_dump(), **place}, "models"),
            "data": data,
            "out": folder,
        }
    )


def _digest(told: Json) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
