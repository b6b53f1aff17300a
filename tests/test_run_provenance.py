"""A run goes on with the rows, weights and versions it began with, or says that it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from commands import Command, mistake, options
from federation import Interrupted, StopAfter, World, snapshot, text_rows, write_lines
from forefed.core.errors import UserError
from forefed.run import Config, configure, provenance, run
from forefed.run.provenance import weights_digest
from tiny import tiny_model


@pytest.fixture
def stopped(world: World, tmp_path: Path) -> Config:
    """A run with files of its own, after its first round."""
    texts = tmp_path / "texts.jsonl"
    shutil.copy(world.texts, texts)
    shutil.copytree(world.bert, tmp_path / "bert")
    places = [f"data.source.path='{texts}'", f"model.name='{tmp_path / 'bert'}'"]
    config = world.config(tmp_path / "runs", *places)
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(1))
    return config


def other_rows(config: Config) -> None:
    rows = text_rows()
    rows[5]["text"] += " w9"
    write_lines(Path(str(config.data.source.path)), rows)  # type: ignore[attr-defined]


def other_weights(config: Config) -> None:
    path = Path(config.model.name) / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.endswith("query.weight"))
    tensors[name][0, 0] += 1e-3
    save_file(tensors, path, {"format": "pt"})


def other_version(config: Config) -> None:
    path = config.folder / "environment.json"
    about = json.loads(path.read_text())
    about["origin"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(about))


CHANGES = {
    "the training rows": other_rows,
    "the weights of the model": other_weights,
    "version of torch (1.0 before": other_version,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_or_written_into_the_record(
    what: str, stopped: Config, forefed_command: Command
) -> None:
    CHANGES[what](stopped)
    before = snapshot(stopped.folder)
    said = forefed_command("run", stopped.folder, "--resume")
    mistake(said, what, "--accept-changes")
    assert snapshot(stopped.folder) == before
    result = run(stopped, resume=True, accept_changes=True)
    (change,) = result.summary["changes"]
    assert change["round"] == 1 and len(change["changed"]) == 1
    about = json.loads((stopped.folder / "environment.json").read_text())
    assert about["changes"] == [change]
    assert about["origin"]["versions"]["torch"] != "1.0"


def test_rows_of_a_new_class_are_refused_and_never_end_in_a_trace(
    stopped: Config, forefed_command: Command
) -> None:
    rows = [*text_rows(), *({"text": "w7 w8", "label": "new", "site": "one"} for _ in range(9))]
    write_lines(Path(str(stopped.data.source.path)), rows)  # type: ignore[attr-defined]
    said = forefed_command("run", stopped.folder, "--resume", "--accept-changes")
    mistake(said, "the classes", "start a new run")


def test_another_model_of_other_shapes_is_refused(stopped: Config) -> None:
    from forefed.run.checkpoint import check_fits, load_checkpoint

    task_device = __import__("torch").device("cpu")
    saved = load_checkpoint(stopped.folder, stopped, task_device)
    assert saved is not None
    other = {name: x[:-1] for name, x in saved.state.params.items()}
    with pytest.raises(UserError, match=r"does not fit the model any more .* has shape"):
        check_fits(stopped.folder, saved.state, other)


def test_nothing_changed_nothing_said(stopped: Config) -> None:
    assert "changes" not in run(stopped, resume=True).summary


def test_an_older_record_without_digests_goes_on_with_a_note(stopped: Config) -> None:
    from forefed.run import Callback

    class Notes(Callback):
        heard: tuple[str, ...] = ()

        def note(self, text: str) -> None:
            self.heard += (text,)

    path = stopped.folder / "environment.json"
    about = json.loads(path.read_text())
    del about["origin"]
    path.write_text(json.dumps(about))
    notes = Notes()
    run(stopped, resume=True, callbacks=[notes])
    assert any("keeps no digests" in text for text in notes.heard)


def test_the_digest_of_a_large_model_is_sampled_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("bert")
    whole = weights_digest(model)
    monkeypatch.setattr(provenance, "WHOLE", 100)
    monkeypatch.setattr(provenance, "SAMPLE", 64)
    assert weights_digest(model).startswith("sampled:") and not whole.startswith("sampled:")
    assert weights_digest(model) == weights_digest(tiny_model("bert"))


def test_moved_runs_are_compared_too(stopped: Config, tmp_path: Path) -> None:
    """A folder that was moved goes on; its place is no part of what is compared."""
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(stopped.folder, moved)
    raw = json.loads((moved / "config.json").read_text())
    config = configure(base={**raw, "out": str(tmp_path / "elsewhere")})
    assert "changes" not in run(config, resume=True).summary


def test_a_run_that_begins_has_no_changes_to_accept(
    world: World, forefed_command: Command, tmp_path: Path
) -> None:
    said = forefed_command("run", *options(world.sets(tmp_path)), "--accept-changes")
    mistake(said, "--accept-changes", "--resume")
    assert not list(tmp_path.iterdir())
