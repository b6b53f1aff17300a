"""A peer's folder: its settings, its key, whom it knows, and what the run has so far.

peer.toml         its own settings: name, address, rows, model's place
peer.key          its private key (Ed25519): for TLS, and to sign what it contributes
NAME.peer         what others must know of it: name, address, certificate. Public
known/*.peer      those of all peers, its own among them: who may take part is known in advance
run.toml          the run's settings, the same at every peer
peer.log          the shared log as it has it (federation/chains.py)
run/              the record: config, digest, log, checkpoint, adapter (written at the end)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from forefed.config.compat import check
from forefed.config.config import Config, configure, merge, read_toml
from forefed.core.errors import UserError
from forefed.core.files import write_atomic, write_json
from forefed.core.settings import Settings, parse
from forefed.deploy.names import Address, SiteName, split_address, with_port
from forefed.deploy.settings import SiteData, from_folder
from forefed.federation.peer import conflicts

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SETTINGS, RUN_TOML, KNOWN, LOG, RUN = "peer.toml", "run.toml", "known", "peer.log", "run"
DAYS = 3650
LARGEST = 1 << 16  # bytes of a .peer file

TEMPLATE = """\
# This peer's own settings. The run's stand in run.toml, alike at every peer.
name = {name}
address = {address}          # where others reach it; it listens on this port
# listen = "0.0.0.0"         # another interface to listen on (default: the address's own)
# join_s = 15.0              # how long it waits for others before its first round
# linger_s = 30.0            # how long it stays when all is done and quiet; inf: until it is ended
# absent_s = 300.0           # the same, while somebody who is listed has never come

[data.source]
kind = "files"
path = {path}
"""


class PeerSettings(Settings):
    """peer.toml: what a peer decides by itself."""

    name: SiteName
    address: Address
    listen: str | None = None
    """Interface to listen on; None: the address's host."""
    data: SiteData
    models: dict[str, str] = Field(default_factory=lambda: {"minilm": "minilm"})
    """Models that may be trained: the name in run.toml, and what is loaded for it here."""
    device: str = "cpu"
    every_s: Annotated[float, Field(gt=0, le=60)] = 0.3
    """Seconds between two rounds of talks."""
    join_s: Annotated[float, Field(ge=0)] = 15.0
    """How long its first round waits for peers that are not there yet."""
    linger_s: Annotated[float, Field(ge=0, allow_inf_nan=True)] = 30.0
    """How long it stays when all is done: since anybody said anything new, or was heard who was not
    done. inf: until it is ended, as a holder of the log."""
    absent_s: Annotated[float, Field(ge=0)] = 300.0
    """How long it stays then for who is listed and never came (``linger_s`` where that is more)."""


class Known(Settings):
    """A NAME.peer file."""

    name: SiteName
    address: Address
    certificate: Annotated[str, Field(max_length=LARGEST)]
    """PEM."""


@dataclass(frozen=True)
class PeerFolder:
    """What ``forefed peer init`` makes."""

    root: Path

    settings = property(lambda self: self.root / SETTINGS)
    key = property(lambda self: self.root / "peer.key")
    known = property(lambda self: self.root / KNOWN)
    run_toml = property(lambda self: self.root / RUN_TOML)
    log = property(lambda self: self.root / LOG)
    run = property(lambda self: self.root / RUN)

    def card(self, name: str) -> Path:
        return self.root / f"{name}.peer"


def need_cryptography() -> None:
    """Raises UserError: its package is not installed."""
    if find_spec("cryptography") is None:
        raise UserError(
            "peers sign what they say: pip install 'forefed[secure]' brings what it takes"
        )


def init_peers(folders: Sequence[Path], data: str, config: Path, address: str) -> list[PeerFolder]:
    """Make a peer, or several that know each other (to try a run on one machine).

    Args:
        data: file or folder with the rows; "{name}" in it stands for the peer's name, which is that
            of its folder.
        address: host:port of the first one; the others have the ports that follow.

    Raises:
        UserError: there is a peer already, a name or an address that cannot be, rows or settings
            that cannot be read, or settings that peers cannot work with.
    """
    need_cryptography()
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError("peer init: two folders of one name; a peer is named by its folder")
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise UserError(f"--address {address!r}: {error}") from None
    _run_config(config, names)
    made = []
    for i, (root, name) in enumerate(zip(folders, names, strict=True)):
        folder, path = PeerFolder(root), Path(data.replace("{name}", name)).resolve()
        if folder.settings.exists():
            raise UserError(f"{folder.settings}: there is a peer here already")
        own = {"name": name, "address": with_port(host, port + i)}
        source = {"kind": "files", "path": str(path)}
        settings = parse(PeerSettings, {**own, "data": {"source": source}}, name)
        settings.data.source.load(None)
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
        certificate = _write_identity(folder.key, name)
        card = {"name": name, "address": settings.address, "certificate": certificate}
        write_json(folder.card(name), card)
        shutil.copyfile(config, folder.run_toml)
        quoted = {k: json.dumps(v, ensure_ascii=False) for k, v in own.items()}
        text = TEMPLATE.format(**quoted, path=json.dumps(str(path), ensure_ascii=False))
        write_atomic(folder.settings, text.encode(), 0o600)
        made.append(folder)
    for folder in made:
        know(folder.root, [f.card(n) for f, n in zip(made, names, strict=True)])
    return made


def know(root: Path, cards: Sequence[Path]) -> str:
    """Take these peers' files among the known ones; returns what owners compare with each other:
    one fingerprint of all names and certificates.

    Raises:
        UserError: no peer here, or a file that is none of a peer, or another of a known name.
    """
    folder = PeerFolder(root)
    read_peer(root)
    for path in cards:
        card = _read_card(path)
        place = folder.known / f"{card.name}.peer"
        if place.exists() and _read_card(place).certificate != card.certificate:
            raise UserError(f"{path}: {card.name} is known with another certificate; ask its owner")
        write_json(place, card.model_dump())
    return roster_digest(known_peers(root)).hex()


def known_peers(root: Path) -> list[Known]:
    """All peers of the run in the order of their names: author 0, 1, ...

    Raises:
        UserError: a damaged file, a name twice, or this peer is not among them.
    """
    settings = read_peer(root)
    found = sorted(
        (_read_card(p) for p in sorted(PeerFolder(root).known.glob("*.peer"))), key=lambda k: k.name
    )
    names = [k.name for k in found]
    if settings.name not in names or len(set(names)) < len(names):
        raise UserError(
            f"{root / KNOWN}: every peer's file stands there once, this one's own, too ('forefed "
            "peer know FOLDER FILES')"
        )
    return found


def roster_digest(peers: Sequence[Known]) -> bytes:
    """Of names and certificates: 12 bytes."""
    digest = hashlib.sha256()
    for peer in peers:
        digest.update(peer.name.encode() + b"\0" + hashlib.sha256(der_of(peer)).digest())
    return digest.digest()[:12]


def der_of(peer: Known) -> bytes:
    """A peer's certificate as TLS shows it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        found = x509.load_pem_x509_certificate(peer.certificate.encode())
    except ValueError:
        raise UserError(f"{peer.name}: its file holds no certificate") from None
    return found.public_bytes(serialization.Encoding.DER)


def read_peer(root: Path) -> PeerSettings:
    """A peer's settings; a relative path of rows is meant from its folder.

    Raises:
        UserError: no peer there, or mistakes in its settings.
    """
    path = root / SETTINGS
    if not path.is_file():
        raise UserError(f"{root}: no peer here; 'forefed peer init' makes one")
    settings = parse(PeerSettings, read_toml(path), str(path))
    return settings.model_copy(update={"data": from_folder(settings.data, root)})


def shared_config(root: Path) -> Config:
    """The run's settings, as every peer reads them.

    Raises:
        UserError: settings that peers cannot work with.
    """
    return _run_config(root / RUN_TOML, [k.name for k in known_peers(root)])


def own_config(root: Path, shared: Config, settings: PeerSettings) -> Config:
    """The same with this peer's rows, model and folder.

    Raises:
        UserError: a model that it does not have.
    """
    if shared.model.name not in settings.models:
        raise UserError(
            f"{root / SETTINGS}: models: says nothing of '{shared.model.name}', which run.toml "
            "trains; name what is loaded for it here"
        )
    place = {"name": settings.models[shared.model.name], "device": settings.device}
    task = {**shared.data.task.model_dump(), **settings.data.columns}
    own = {"source": settings.data.source, "task": parse(type(shared.data.task), task, "columns")}
    return shared.model_copy(
        update={
            "model": parse(type(shared.model), {**shared.model.model_dump(), **place}, "models"),
            "data": shared.data.model_copy(update=own),
            "out": root,
            "name": RUN,
        }
    )


def _run_config(file: Path, names: Sequence[str]) -> Config:
    # the start and the guard ask all clients, which takes a server
    begun: dict[str, Any] = {"start": "none", "guard": "none", "cohort": len(names)}
    raw = merge(begun, read_toml(file))
    partition = {"kind": "sites", "names": sorted(names)}
    config = configure(base={**raw, "partition": partition})
    check(config, deployed=True)
    reasons = [*conflicts(config)]
    if reasons:
        raise UserError("\n".join(f"{file}: {reason}" for reason in reasons))
    return config


def _read_card(path: Path) -> Known:
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no file of a peer ({error})") from None
    found = parse(Known, raw, str(path))
    der_of(found)
    return found


def _write_identity(key: Path, name: str) -> str:
    """A new key pair; returns its certificate, signed by itself, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509.oid import NameOID

    own = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = x509.CertificateBuilder(
        issuer_name=subject,
        subject_name=subject,
        public_key=own.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(days=1),  # clocks differ
        not_valid_after=now + timedelta(days=DAYS),
    ).sign(own, None)
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    shown = certificate.public_bytes(pem)
    secret = own.private_bytes(pem, form, serialization.NoEncryption())
    write_atomic(key, secret + shown, 0o600)
    return shown.decode()


def read_key(path: Path) -> Ed25519PrivateKey:
    """A peer's private key.

    Raises:
        UserError: there is none.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: holds no private key; restore it from a copy") from None
    if not isinstance(found, Ed25519PrivateKey):
        raise UserError(f"{path}: another kind of key than 'forefed peer init' makes")
    return found
