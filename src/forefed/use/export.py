"""A run's model for use elsewhere: PEFT's adapter, a plain LoRA, or a whole model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from forefed.config.config import Config
from forefed.core.errors import UserError, nearest
from forefed.core.files import rename_folder
from forefed.core.settings import parse
from forefed.models.bag_of_words import WORDS, Words
from forefed.models.export import CARD, CONFIG, FORMS, WEIGHTS, Form, refusal, save_adapter
from forefed.models.graph import need_exporter
from forefed.models.load import load_tokenizer
from forefed.models.objectives import objective_of
from forefed.models.outside import HEAD, head_text
from forefed.models.place import file_of
from forefed.run import record
from forefed.run.build import whole_length
from forefed.run.card import OWN_HEAD, Trained, model_card
from forefed.run.checkpoint import BEST, FILE
from forefed.run.start_result import load_begun
from forefed.run.summary import ADAPTER, FINISHED
from forefed.use.predict import trained


def export_adapter(
    run: Path, folder: Path, form: str = "peft", force: bool = False, best: bool = False
) -> str:
    """Write what a run has trained to a new folder.

    Returns:
        What whoever loads it must know beside the card; empty: nothing.

    Args:
        form: "peft", "lora", "model", "gguf" or "onnx" (``models.export``).
        force: also of a run that has not finished, or finished without training anything worth
            having; the card says so.
        best: the parameters of the best evaluation instead of the last ones.

    Raises:
        UserError: no such run or form, an unfinished run without ``force``, a folder that is not
            empty.
    """
    config = parse(Config, record.read_config(run))
    if form not in FORMS:
        raise UserError(f"export: --as {form}: {nearest(form, FORMS)}")
    chosen: Form = form
    reason = refusal(config.adapter, chosen, file_of(config.model))
    if chosen == "gguf" and objective_of((), config.data.task.head).has_head:
        reason = "export: --as gguf: a head has no place in a GGUF file; leave --as out"
    if chosen == "onnx":
        need_exporter()
        labels = record.label_names(run)
        ends_in = objective_of(labels, config.data.task.head)
        if not load_tokenizer(config.model).is_fast:
            reason = (
                "export: --as onnx: this tokeniser has no tokenizer.json, by which texts are read "
                "without transformers; leave --as out"
            )
        elif ends_in.auto != "AutoModelForCausalLM" and not ends_in.numpy_recipe():
            reason = (
                f"export: --as onnx: a graph from a text's tokens to logits is made of classes, "
                f"labels, numbers and language models, not of data.task.kind = "
                f"'{config.data.task.kind}'; leave --as out"
            )
    if reason is not None:
        raise UserError(reason)
    summary = record.summary(run)
    status = None if summary is None else summary.get("status")
    if status != FINISHED and not force:
        why = "is not finished, so it has no adapter yet (--resume it)"
        if summary is not None:
            said = f": {summary['reason']}" if summary.get("reason") else ""
            why = f"ended as '{status}'{said}"
        raise UserError(f"{run}: the run {why}; --force exports its last checkpoint all the same")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)) / folder.name
    try:
        if chosen == "peft" and status == FINISHED and not best:
            _check_whole(run, run / ADAPTER)
            shutil.copytree(run / ADAPTER, building)
            assert summary is not None
            about = Trained.of(run, summary["rounds"], summary, (building / HEAD).exists())
            columns = about.provenance["columns"]
            words = config.data.task.dressed(load_tokenizer(config.model), columns)
            card = model_card(config, about, words)
            (building / CARD).write_text(card, encoding="utf-8")
        else:
            _write(run, config, chosen, building, BEST if best else FILE)
        if folder.exists():
            folder.rmdir()
        rename_folder(building, folder)
    finally:
        shutil.rmtree(building.parent, ignore_errors=True)
    return (
        OWN_HEAD.replace("as below", "as its README.md shows") if (folder / HEAD).exists() else ""
    )


def _check_whole(run: Path, adapter: Path) -> None:
    """Whether the adapter's files are those of an adapter, before they are copied."""
    fault = _fault(adapter)
    if fault is not None:
        raise UserError(
            f"{adapter}: damaged ({fault}); remove it and {run / record.SUMMARY}, "
            f"and 'forefed run {run} --resume' writes both again"
        )


def _fault(adapter: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    missing = [name for name in (CONFIG, WEIGHTS) if not (adapter / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        if "peft_type" not in record.read_json(adapter / CONFIG):
            return f"{CONFIG} is none of an adapter"
        with safe_open(adapter / WEIGHTS, "pt") as weights:
            return None if weights.keys() else f"{WEIGHTS} holds no tensor"
    except (UserError, OSError, SafetensorError):
        return f"{CONFIG} or {WEIGHTS} cannot be read"


def _write(run: Path, config: Config, form: Form, folder: Path, file: str) -> None:
    """From the last checkpoint. A merged model has its base's weights in full, not quantised."""
    task, state = trained(run, config, exact=form in ("model", "gguf", "onnx"), file=file)
    own_head = head_text(task) is not None
    about = Trained.of(run, state.round, record.summary(run), own_head)
    columns = about.provenance["columns"]
    tokenizer = config.data.task.dressed(load_tokenizer(config.model), columns)
    card = model_card(config, about, tokenizer, form)
    begun = load_begun(run)
    words = None if begun is None else begun.words
    if file == BEST:  # the head may have been another one then, and so how much words counted
        words = Words.told(state.of(WORDS))
    reads = config.data.max_length if whole_length(config, tokenizer, columns) else None
    source = file_of(config.model)
    save_adapter(task, state.params, folder, card, tokenizer, form, words, reads, source)
