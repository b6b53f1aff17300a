"""JSON that another machine has written."""

from __future__ import annotations

import json
from typing import Any

from forefed.core.errors import ProtocolError


def json_table(data: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ProtocolError: something else, or nested more deeply than any message of ours.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what}: no JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{what}: no table")
    return value
