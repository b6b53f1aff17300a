"""Settings of the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from forefed.core.settings import SERVER_ONLY, Settings, Slot
from forefed.data.sources import SOURCES, PyDocs, Source
from forefed.data.tasks import TASKS, Classification, TextTask


class DataSettings(Settings):
    """Which texts, what is learned from them, and how they are cut."""

    source: Annotated[
        SerializeAsAny[Source], Slot(SOURCES, "where are the texts?"), SERVER_ONLY
    ] = PyDocs()
    task: Annotated[SerializeAsAny[TextTask], Slot(TASKS, "what is learned from them?")] = (
        Classification()
    )
    max_length: Annotated[int, Field(ge=4)] = 64
    """Tokens; longer texts are cut."""
    test_fraction: Annotated[float, Field(gt=0, lt=1), SERVER_ONLY] = 0.1
    """Part of the rows held out as the global test set, where the source has no test split."""
    test_on: Annotated[Literal["test", "validation"], SERVER_ONLY] = "test"
    """"validation": ``test_fraction`` of the *training* rows is held out and tested on instead, and
    no test row is used at all, as it must be wherever a setting is chosen by results."""
    split_seed: Annotated[Annotated[int, Field(ge=0, lt=2**64)] | None, SERVER_ONLY] = None
    """Draws ``limit`` and the held-out rows; None: the run's ``seed``. With a fixed one, runs of
    different seeds are tested on the same rows."""
    client_test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Part of its examples that each client keeps for its own test."""
    unlabelled: Literal["refuse", "drop"] = "refuse"
    """What happens to rows without a label: "drop" leaves them out, said and counted."""
    limit: Annotated[Annotated[int, Field(ge=2)] | None, SERVER_ONLY] = None
    """Use this many rows only, drawn by the seed (of a given test split likewise): quick tries."""
