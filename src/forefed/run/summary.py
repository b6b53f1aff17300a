"""What a run's folder says of the run: its head, before the first round, and its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forefed.attacks import Hostile
from forefed.config.privacy import delta_of, statements
from forefed.core import trees
from forefed.core.boundary import UNTRAINED
from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.core.types import Json
from forefed.federation.adversary import Adversary
from forefed.federation.state import RunState
from forefed.models.attention import attention_of
from forefed.models.export import CONFIG, save_adapter
from forefed.models.load import load_tokenizer
from forefed.models.outside import head_text
from forefed.models.quantised import frozen_dtype, parameter_count, weights_bytes
from forefed.models.task import Task
from forefed.privacy import Ledger
from forefed.run import record
from forefed.run.best import best_of, tests_of
from forefed.run.build import Federation, whole_length
from forefed.run.card import Trained, model_card
from forefed.run.checkpoint import config_digest
from forefed.run.health import Ending
from forefed.run.lines import choices, protects
from forefed.run.log import LOG, ScalarLog, create_log
from forefed.run.start_result import Begun

FINISHED, ADAPTER = "finished", "adapter"


@dataclass(frozen=True)
class Result:
    """What ``run`` returns: the folder of the record, and the summary written there."""

    folder: Path
    summary: Json

    @property
    def status(self) -> int:
        """The exit status of a command that ran it."""
        return 0 if self.summary.get("status") == FINISHED else UNTRAINED


def check_adapter_place(folder: Path) -> None:
    """Where the adapter will stand there is one, or nothing.

    Raises:
        UserError: something else is there; said before any work, as it is written last.
    """
    place = folder / ADAPTER
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()
    if place.exists() and not (place / CONFIG).is_file():
        raise UserError(f"{place}: is no adapter, and one is to be written there; move it away")


def about_model(task: Task) -> Json:
    """What a record says of the model."""
    dtype = frozen_dtype(task.model)
    return {
        "name": task.base_name,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": attention_of(task.model),
        "device": str(task.device),
        "parameters": parameter_count(task.model),
        "weights_bytes": weights_bytes(task.model),
        "trainable": sum(u.size for u in task.units),
        "units": [[u.name, u.depth, u.size] for u in task.units],
        "notes": list(task.notes),
    }


def write_head(
    federation: Federation, folder: Path, origin: Json, first: RunState
) -> ScalarLog | None:
    """What a record says before its first round; the configuration, last, makes it a run. Returns
    the log, where slopes travel."""
    task = federation.task
    majority = federation.majority()
    data: Json = {**federation.data.provenance, "counts": federation.data.counts}
    measures = task.objective.measures.to_json()
    about: Json = {
        "measures": measures,
        "majority": majority,
        "data": data,
        "model": about_model(task),
        "origin": origin,
    }
    attack, transport = federation.config.attack, federation.transport
    if isinstance(attack, Hostile) and isinstance(transport, Adversary):
        about["attack"] = {
            "kind": attack.kind,
            "clients": sorted(transport.who),
            "told": attack.told(),
        }
    write_json(
        folder / record.ENVIRONMENT,
        {
            **record.environment(),
            **about,
            "choices": choices(federation.config),
            "protects": protects(federation.config),
            "emulated": federation.emulated,
            "secret": federation.secrecy,
        },
    )
    write_json(folder / "partition.json", federation.data.population.summary())
    config, log = federation.config, None
    if config.codec.sends_slopes:
        log = create_log(folder / LOG, config_digest(config), trees.digest(first.params))
    record.write_config(folder, config)
    return log


def spent(federation: Federation, ledger: Ledger, round: int | None) -> list[Json]:
    """What the run has let out up to a round, or in all (None), as statements."""
    made = [r for r in ledger.made if round is None or r.round <= round]
    return statements(made, delta_of(federation.config), federation.in_rehearsal)


def write_end(
    federation: Federation,
    folder: Path,
    state: RunState,
    ending: Ending | None,
    begun: Begun | None,
    ledger: Ledger,
) -> Result:
    """Adapter, model card and summary; the summary comes last and marks the run as ended.

    A run that trained nothing worth using (``ending``) gets no adapter: the parameters of its last
    good round stay in its checkpoint.
    """
    rounds, tests = record.read_lines(folder, record.ROUNDS), tests_of(folder)
    none: Json = {"bytes_up": 0, "bytes_down": 0, "seconds": 0.0, "forwards": 0.0}
    extra: Json = none if begun is None else {**none, **begun.line}
    lines = [*rounds, extra]
    decides = federation.task.objective.measures.decides
    about: Json = {} if ending is None else {"reason": ending.reason}
    attack = federation.config.attack
    if isinstance(attack, Hostile):
        about["attack"] = attack.told()
    errors = [e for r in rounds if (e := r["metrics"].get("lora_error")) is not None]
    alone = begun is not None and begun.finished and not begun.line.get("adapted")
    if errors and not alone:  # (of steps that were not taken there is nothing to say)
        about["lora_error"] = {"mean": sum(errors) / len(errors), "last": errors[-1]}
    changed = record.read_json(folder / "environment.json").get("changes")
    summary: Json = {
        "status": FINISHED if ending is None else ending.status,
        **about,
        "rounds": state.round,
        "digest": trees.digest(state.params),
        "baseline": {
            "majority": federation.majority(),
            ("untrained" if begun is None else "head alone"): decides.of(tests[0]),
        },
        "final": tests[-1],
        "best": best_of(tests, decides),
        "totals": {
            "bytes_up": sum(r["bytes_up"] for r in lines),
            "bytes_down": sum(r["bytes_down"] for r in lines),
            "seconds": sum(r["seconds"]["total"] for r in rounds) + extra["seconds"],
            "forwards": sum(r["forwards"] for r in lines),
        },
        **({"privacy": spent(federation, ledger, None)} if ledger.made else {}),
        **({"changes": changed} if changed else {}),
    }
    if ending is None:
        own_head = head_text(federation.task) is not None
        columns = federation.data.provenance["columns"]
        task = federation.config.data.task
        words = task.dressed(load_tokenizer(federation.config.model), columns)
        trained = Trained.of(folder, state.round, summary, own_head)
        card = model_card(federation.config, trained, words)
        said, config = None if begun is None else begun.words, federation.config
        reads = config.data.max_length if whole_length(config, words, columns) else None
        save_adapter(
            federation.task, state.params, folder / ADAPTER, card, words, words=said, reads=reads
        )
    write_json(folder / record.SUMMARY, summary)
    return Result(folder, summary)
