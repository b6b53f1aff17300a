"""What may name a machine, an address, a site and a folder; checked before anything is written.

These names stand in certificates, in Flower's command lines and in the files of systemd and nginx,
so what would mean something there is refused instead of being quoted in four ways.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from forefed.core.errors import UserError

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_IN_FOLDERS = re.compile(r"[^\"'\\`$;{}\x00-\x1f\x7f\ud800-\udfff]+")


def host_name(text: str) -> str:
    """A name or an IP address of a machine.

    Raises:
        ValueError: neither.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        parts = text.split(".")
        whole = len(text) <= 253 and all(_LABEL.fullmatch(part) for part in parts)
        if not whole or parts[-1].isdigit():
            raise ValueError(
                "no name or address of a machine, as hub.example.org or 10.0.0.5 are"
            ) from None
    return text


def address(text: str) -> str:
    """host:port; an IPv6 address stands in brackets.

    Raises:
        ValueError: another form, or a port outside 1 to 65535.
    """
    host, port = split_address(text)
    host_name(host)
    if not 1 <= port <= 65535:
        raise ValueError("the port lies between 1 and 65535")
    return text


def split_address(text: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        ValueError: another form.
    """
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError("give host:port, for example hub.example.org:443")
    return host.removeprefix("[").removesuffix("]"), int(port)


def with_port(host: str, port: int) -> str:
    """An address, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def site_name(text: str) -> str:
    """A site's name: it stands in file names and on command lines.

    Raises:
        ValueError: other characters, or another beginning.
    """
    if not _SITE.fullmatch(text):
        raise ValueError(
            "a site's name has 1 to 64 letters, digits, dots, dashes or underscores, and begins "
            "with a letter or a digit"
        )
    return text


HostName = Annotated[str, AfterValidator(host_name)]
Address = Annotated[str, AfterValidator(address)]
SiteName = Annotated[str, AfterValidator(site_name)]
Port = Annotated[int, Field(ge=1, le=65535)]


def checked_site_name(text: str) -> str:
    """A site's name from the command line.

    Raises:
        UserError: it is none.
    """
    try:
        return site_name(text)
    except ValueError as error:
        raise UserError(f"{text!r}: {error}") from None


def usable_folder(path: Path) -> Path:
    """A folder for a server or a site, made absolute.

    Raises:
        UserError: characters that Flower, systemd or nginx would take for something else.
    """
    whole = path.resolve()
    if not _IN_FOLDERS.fullmatch(str(whole)):
        raise UserError(
            f"{str(whole)!r}: Flower's command lines and systemd cannot name this folder; choose "
            "one without quotes, backslashes, $, ;, braces and control characters"
        )
    if whole.exists() and not whole.is_dir():
        raise UserError(f"{whole}: this is a file, not a folder")
    return whole
