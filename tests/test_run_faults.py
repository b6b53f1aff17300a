"""Faults of one machine: kills between any two writes, full and read-only disks, long runs."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from commands import Command, mistake, options
from faults import fault
from federation import World, lines, snapshot
from forefed.report import read_run, write_report
from forefed.run import Callback, Config, run
from forefed.run.record import locked
from forefed.use.export import export_adapter
from kills import ALL, killed_at, points, written

TINY = ["strategy=fedavg", "adapter=lora", "client.max_steps=1", "client.optimiser=sgd"]


def sets(name: str, *more: str) -> list[str]:
    return [*TINY, "rounds=2", f"name={name}", *more]


@fault(
    "the process killed before or after any flush or renaming",
    "a whole run, codec 'dense' and 'scalars'",
    "nothing is half written; the same command (or --resume): same bits, nothing left over",
)
@pytest.mark.parametrize("codec", ["dense", "scalars"])
def test_a_kill_between_any_two_writes(codec: str, world: World, tmp_path: Path) -> None:
    more = [] if codec == "dense" else ["strategy=spry", "codec=scalars", "server=sgd"]
    with written() as calls:
        whole = world.run(tmp_path, *sets("whole", *more))
    adapter = 2 * calls.index("adapter")  # within its writing
    names = {p.name for p in whole.folder.rglob("*")}
    reached = 0
    for point in sorted({*points(2 * len(calls), 3), adapter}):
        config = world.config(tmp_path, *sets(f"killed-{point}", *more))
        if not killed_at(point, lambda config=config: run(config)):
            shutil.rmtree(config.folder)
            continue
        reached += 1
        again = run(config, resume=(config.folder / "config.json").exists())
        assert again.summary["digest"] == whole.summary["digest"], point
        for name in ("evaluations.jsonl", "checkpoint.safetensors"):
            assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), point
        assert {p.name for p in again.folder.rglob("*")} == names, point
    assert reached


@fault(
    "the process killed before or after any flush or renaming",
    "export",
    "the new folder is whole or not there; the same command again: the same files",
)
def test_a_kill_during_export(world: World, finished: dict[str, Path], tmp_path: Path) -> None:
    source = finished["classification"]
    export_adapter(source, tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    with written() as calls:
        export_adapter(source, tmp_path / "counted")
    renamed, reached = 2 * calls.index("counted"), 0
    for point in (*points(2 * len(calls), 1), renamed, renamed + 1):
        folder = tmp_path / f"new-{point}"
        reached += killed_at(point, lambda folder=folder: export_adapter(source, folder))
        assert not folder.exists() or contents(folder) == wanted
        if not folder.exists():
            export_adapter(source, folder)
        assert contents(folder) == wanted
    assert reached


@fault(
    "the process killed before or after any flush or renaming",
    "report",
    "the former report is whole, or the new one",
)
def test_a_kill_during_a_report(finished: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("the former one")
    reached = 0
    for point in (0, 3, 5):
        work = lambda: write_report([read_run(finished["classification"])], page)  # noqa: E731
        reached += killed_at(point, work)
        text = page.read_text()
        assert text == "the former one" or text.rstrip().endswith("</html>")
    assert reached


def contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in snapshot(folder).items()}


@fault(
    "two processes in one run's folder",
    "while the first one runs",
    "the second one says so in a sentence and changes nothing",
)
def test_two_processes_in_one_folder(
    world: World, forefed_command: Command, tmp_path: Path
) -> None:
    config = world.config(tmp_path)
    with locked(config.folder):
        before = snapshot(tmp_path)
        said = forefed_command("run", *options(world.sets(tmp_path)))
        mistake(said, "another process", "choose another name")
        assert snapshot(tmp_path) == before


@contextmanager
def disk(place: Path, options: str) -> Iterator[Path]:
    """A file system in memory; skips where this user may not make one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("this user may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@fault(
    "a full disk (a tmpfs of 400 kB, filled by another program)",
    "in the second round",
    "the run stops and says so; with room again --resume: same bits",
)
def test_a_full_tmpfs(world: World, tmp_path: Path) -> None:
    from forefed.core.errors import UserError

    whole = world.run(tmp_path / "a", *sets("run"))
    (tmp_path / "cache").mkdir()
    with disk(tmp_path / "b", "size=400k") as out:
        config = world.config(out, *sets("run"))

        class Fills(Callback):
            def round(self, line: dict[str, object]) -> None:
                with (out / "ballast").open("ab", buffering=0) as file, pytest.raises(OSError):
                    while True:
                        file.write(b"x" * 4096)

        with pytest.raises(UserError, match=r"No space left .*make room.*--resume"):
            run(config, callbacks=[Fills()])
        (out / "ballast").unlink()
        again = run(config, resume=True)
        assert again.summary["digest"] == whole.summary["digest"]


@fault(
    "a read-only file system",
    "at the start",
    "refused in a sentence that names the place; nothing is changed",
)
def test_a_read_only_file_system(world: World, forefed_command: Command, tmp_path: Path) -> None:
    with disk(tmp_path / "out", "size=4m") as out:
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        said = forefed_command("run", *options(world.sets(out, "name=new")))
        mistake(said, str(out), "Read-only file system", "choose another place")
        assert not list(out.iterdir())


@fault(
    "600 small rounds in one process",
    "the whole run",
    "memory (less than 16 MB more than after round 200), handles and threads stay as they are",
)
def test_many_rounds_are_flat(world: World, tmp_path: Path) -> None:
    first, last = (200, 600) if ALL else (30, 90)  # by then caches are as large as they get
    me = psutil.Process()
    seen: dict[int, tuple[int, int]] = {}
    alive: dict[int, int] = {}

    class Looks(Callback):
        def round(self, line: dict[str, int]) -> None:
            if line["round"] in (first, last):
                gc.collect()
                seen[line["round"]] = (me.num_fds(), me.num_threads())
                alive[line["round"]] = sum(type(x) is torch.Tensor for x in gc.get_objects())

    long = [*TINY, f"rounds={last}", "cohort=1", "evaluate.every=100", "checkpoint_every=20"]
    result = run(world.config(tmp_path, *long), callbacks=[Looks()])
    assert seen[first] == seen[last]
    assert alive[last] - alive[first] < last - first  # not even one a round
    if ALL:  # a test worker's resident memory is that of a thousand tests before this one
        rss = [line["memory"]["rss"] for line in lines(result.folder, "rounds.jsonl")]
        assert max(rss[last - 10 :]) - max(rss[first - 10 : first]) < 16e6


@fault(
    "1,000,000 declared clients",
    "a run from start to finish",
    "less than 100 MB more memory, 20 s of rounds; its JSON files less than 200 kB",
)
def test_a_million_clients(world: World, tmp_path: Path) -> None:
    many = ["partition=bootstrap", "partition.clients=1000000", "partition.examples_per_client=8"]
    config: Config = world.config(tmp_path, *TINY, *many, "rounds=2")
    before = psutil.Process().memory_info().rss
    result = run(config)
    grown = psutil.Process().memory_info().rss - before
    assert result.summary["status"] == "finished" and grown < 100e6
    assert sum(p.stat().st_size for p in result.folder.glob("*.json")) < 200_000
    if ALL:  # a clock is a matter of what else the machine does
        assert result.summary["totals"]["seconds"] < 20
