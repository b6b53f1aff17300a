"""A site's folder: made, looked at, and started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.settings import parse
from forefed.deploy.certificates import write_key_pair, write_secret
from forefed.deploy.install import unit
from forefed.deploy.places import SITE, SiteFolder, need_flower, read_node
from forefed.deploy.supervise import Stopped, supervise
from forefed.deploy.worker import MAX_PATH

if TYPE_CHECKING:
    from forefed.deploy.settings import SiteSettings

TEMPLATE = """\
# What this site decides by itself. The server learns none of it.
name = {name}
server = {server}
port = {port}          # of the node's own interface, on loopback
device = "cpu"

[data.source]
kind = "files"
path = {path}

# [data.columns]       # where they are called otherwise than in the task: text, label, ...
# text = "note"

[models]               # what may be trained; to the right what is loaded for it here
minilm = "minilm"

[policy]
# strategies = ["fedavg", "spry"]
# max_epochs = 5
# max_steps = 200
# max_rounds = 100
# min_examples = 20
# metrics = ["loss", "steps"]
"""


def init_site(
    root: Path, name: str, data: Path, server: str, authority: Path, port: int
) -> tuple[SiteFolder, str]:
    """A new site: settings, keys, and what its data looks like.

    Raises:
        UserError: there is one already, the data cannot be read, or the path is too long.
    """
    need_flower()
    folder = SiteFolder(root.resolve())
    path = folder.root / SITE
    if path.exists():
        raise UserError(f"{path}: there is a site here already")
    if len(str(folder.socket).encode()) > MAX_PATH:
        raise UserError(
            f"{folder.socket}: longer than the {MAX_PATH} bytes that the address of a socket may "
            "have; choose a shorter path"
        )
    if not authority.is_file():
        raise UserError(f"{authority}: there is no such certificate; the server's is its ca.crt")
    from forefed.deploy.settings import SiteSettings

    raw = {"name": name, "server": server, "port": port}
    source = {"kind": "files", "path": str(data.resolve())}
    settings = parse(SiteSettings, {**raw, "data": {"source": source}})
    about = describe(settings)
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.root.chmod(0o700)
    shutil.copyfile(authority, folder.authority)
    write_key_pair(folder.key, folder.public, name)
    write_secret(folder.secret)
    quoted = {"name": _quote(name), "server": _quote(server), "path": _quote(source["path"])}
    write_atomic(path, TEMPLATE.format(port=port, **quoted).encode(), 0o600)
    write_atomic(
        folder.root / "install" / "forefed-site.service", unit("site", folder.root).encode()
    )
    return folder, about


def describe(site: SiteSettings) -> str:
    """Files, rows and columns, as this site sees them; none of it leaves.

    Raises:
        UserError: the data cannot be read.
    """
    from forefed.data.sources import Files

    rows = site.data.source.load(None).rows
    where = site.data.source.path if isinstance(site.data.source, Files) else site.data.source.kind
    return f"{where}: {len(rows)} rows with the columns {', '.join(rows.column_names)}"


def start_site(root: Path, say: Callable[[str], None]) -> None:
    """Run the worker and Flower's node until a signal ends them.

    Raises:
        UserError: no site there, or something that a new start does not mend.
    """
    need_flower()
    folder = SiteFolder(root.resolve())
    site = read_node(folder.root)
    say(f"{site.name} takes part at {site.server}; logs in {folder.logs}")
    try:
        supervise(folder.programs(site.server, site.port), folder.logs, folder.environment(), say)
    except Stopped as error:
        raise UserError(str(error)) from None


def _quote(text: str) -> str:
    """As a TOML string."""
    return json.dumps(text, ensure_ascii=False)
