"""Names that become part of a path: one component, the same everywhere, never a special one."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

LONGEST = 100
"""Characters; file systems allow 255 bytes, and suffixes and temporary names come on top."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Windows opens a device under these names, whatever the folder."""


def check_name(text: str) -> str:
    """The same text.

    Raises:
        ValueError: it is no name of one file, or one that means something else somewhere.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a name has at most {LONGEST} characters, and this one {len(text)}")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise ValueError("a name consists of the letters a to z and A to Z, digits, '.', '_', '-'")
    if text[0] in ".-" or text[-1] == "." or _DEVICES.fullmatch(text):
        raise ValueError(
            "a name begins with a letter, a digit or '_', does not end in '.', and is none that "
            "Windows keeps for a device"
        )
    return text


Name = Annotated[str, AfterValidator(check_name)]
