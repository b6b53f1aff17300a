"""A script's ``Trainer`` as a site of a deployment (docs/trainer.md)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.types import Params
from forefed.data.examples import ClientData
from forefed.deploy.places import SITE, SITE_FOLDER, SiteFolder
from forefed.deploy.settings import Refusal, read_site
from forefed.deploy.site import Ready, Site
from forefed.deploy.weights import tokenizer_of, weights_of
from forefed.deploy.worker import work
from forefed.hf.own import Own
from forefed.hf.steps import Steps, share_of, steps_of
from forefed.local.party import Party
from forefed.models.adapters import Lora
from forefed.models.begin import SAME
from forefed.run.assemble import make_server
from forefed.run.simulate import OwnModel, units_of

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class Scripted(Ready):
    """A run's settings, with a script's Trainer for them."""

    own: Own
    first: Params

    @property
    def params(self) -> Params:
        return self.first

    @cached_property
    def weights(self) -> dict[str, str]:
        model, tokenizer = self.own.trainer.model, self.own.trainer.processing_class
        return {**weights_of(model, self.own.tensors), **tokenizer_of(tokenizer)}

    @property
    def count(self) -> int:
        return self.own.rows

    def data(self, client: int) -> ClientData:
        return share_of(self.own)

    def check_sent(self, params: Params, round: int, client: int) -> None:
        """Raises Refusal: names of parameters are no data, and the server's operator needs them."""
        here = self.sent(round, self.trainer.sharing.form_of(client, params))
        kept = {n: x for n, x in self.first.items() if n not in here}  # which stay at this site
        if unlike := self.own.differs({**kept, **params}):
            raise Refusal(
                f"the Trainer here does not train what the run does: {unlike}; the adapter in the "
                "script must be that of [adapter]"
            )


def site_of(trainer: Trainer, folder: Path) -> Site:
    """What answers for a site's folder, by this Trainer.

    Raises:
        UserError: no site there, one that has rows, or a Trainer that cannot take part.
    """
    settings = read_site(folder)
    if settings.script is None:
        raise UserError(
            f"{folder / SITE}: this site has rows ([data.source]), which its own worker trains on; "
            "name the script in their place (script = 'train.py')"
        )
    own = Own(trainer)
    if not callable(trainer.processing_class):
        raise UserError(
            "the Trainer: without its tokeniser nobody can tell whether it cuts texts as the "
            "others do; give it one (processing_class=tokenizer)"
        )
    first = own.params

    def prepare(config: Config) -> Scripted:
        check_scale(trainer, config)
        model = OwnModel(first, tuple(units_of(first, None, own.head)), own.head)
        steps: Steps = steps_of(config, model, own)
        server = make_server(config, model, lambda _: steps)
        party = Party(lambda _: steps, config.channel)
        return Scripted(config, steps, steps, server, party, own, first)

    return Site(settings, folder, prepare, brings=True)


def check_scale(trainer: Trainer, config: Config) -> None:
    """Raises Refusal where the script's LoRA multiplies otherwise than the run's, which the
    tensors' names and shapes do not tell."""
    about = getattr(trainer.model, "peft_config", {}).get("default")
    for theirs, ours in SAME if isinstance(config.adapter, Lora) else ():
        there, here = getattr(about, theirs, None), getattr(config.adapter, ours)
        if there is not None and there != here:
            raise Refusal(
                f"the LoRA of the script here has {theirs} = {there}, and adapter.{ours} = {here}"
            )


def federate(trainer: Trainer, site: Path | str | None = None) -> None:
    """Take part in federations as a site, by this Trainer, until the process is ended.

    ``forefed site start`` starts the script that calls this where ``site.toml`` names it (``script
    = "train.py"``). One ``trainer.train()`` is one round; what leaves is what leaves any site
    (docs/deploy.md). Whoever rehearses calls ``forefed.hf.simulate``.

    Args:
        trainer: of Hugging Face, or of a class that derives from it (TRL's); with its tokeniser.
        site: the site's folder (None: that of the site which has started the script).

    Raises:
        UserError: started by nobody and no folder named.
        SystemExit: with 2, after a message, where the site or the Trainer is at fault.
    """
    where = site or os.environ.get(SITE_FOLDER)
    if where is None:
        raise UserError(
            "federate: no site has started this script; name it in a site's site.toml (script = "
            "'train.py') and call 'forefed site start FOLDER', or rehearse by "
            "forefed.hf.simulate([trainer, ...])"
        )
    folder = Path(where).resolve()
    work(SiteFolder(folder).socket, lambda: site_of(trainer, folder))
