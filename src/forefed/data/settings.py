"""Settings of the data."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny

from forefed.core.settings import Settings
from forefed.data.sources import SOURCES, PyDocs, Source
from forefed.data.tasks import TASKS, Classification, TextTask


class DataSettings(Settings):
    """Which texts, what is learned from them, and how they are cut."""

    source: Annotated[SerializeAsAny[Source], BeforeValidator(SOURCES.parse)] = PyDocs()
    task: Annotated[SerializeAsAny[TextTask], BeforeValidator(TASKS.parse)] = Classification()
    max_length: Annotated[int, Field(ge=4)] = 64
    """Tokens; longer texts are cut."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the rows held out as the global test set, where the source has no test split."""
    client_test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Part of its examples that each client keeps for its own test."""
    limit: Annotated[int, Field(ge=2)] | None = None
    """Use this many rows only, drawn by the seed (of a given test split likewise): quick tries."""
