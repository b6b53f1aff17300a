"""What commands print and write: nothing of a user's is markup, and nothing is cut in a pipe."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from pyarrow import parquet

from commands import Command, mistake, options
from federation import CLASSES, World, text_rows, write_lines
from forefed.config.catalogue import LISTS, QUESTIONS
from forefed.config.config import SLOTS, Config
from forefed.config.schema import config_schema
from forefed.core.terminal import one_line, printable
from forefed.strategies import STRATEGIES

NASTY = ("[/redacted]", "[name]", "[bold]x[/bold]", ":smile:")
ESCAPE = "\x1b[31mred\x1b[0m"


@pytest.fixture(scope="module")
def nasty(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which every word that a user chooses looks like markup."""
    root = tmp_path_factory.mktemp("nasty") / NASTY[0] / NASTY[1]
    root.mkdir(parents=True)
    names = dict(zip(CLASSES, NASTY[:3], strict=True))
    rows = [{NASTY[1]: r["text"], NASTY[0]: names[r["label"]]} for r in text_rows()]
    file = write_lines(root / "[red]texts.jsonl", rows)
    shutil.copytree(world.bert, root / NASTY[0])
    sets = [
        *world.sets(root, "name=nasty", f"data.source.path='{file}'", "codec=scalars"),
        *(f"data.task.text='{NASTY[1]}'", f"data.task.label='{NASTY[0]}'", "directions.k=2"),
        f"model.name='{root / NASTY[0]}'",
    ]
    (root / "sets.json").write_text(json.dumps(sets))
    return root


def test_nothing_of_a_users_is_markup(
    nasty: Path, forefed_command: Command, tmp_path: Path
) -> None:
    """Every command that prints texts, labels, names or paths shows them as they are."""
    sets = json.loads((nasty / "sets.json").read_text())
    folder, file = nasty / "nasty", nasty / "[red]texts.jsonl"
    said = {
        "check": forefed_command("check", *options(sets)),
        "run": forefed_command("run", *options(sets)),
        "again": forefed_command("run", folder),
        "report": forefed_command("report", folder, "-o", tmp_path / "[b]page.html"),
        "replay": forefed_command("replay", folder, "--export", tmp_path / "[/i]rebuilt"),
        "export": forefed_command("export", folder, tmp_path / "[/b]adapter"),
        "predict": forefed_command("predict", folder, *NASTY, "dose [/redacted] mg"),
        "to a file": forefed_command(
            *("predict", folder, "--file", file, "--output", tmp_path / "[/u].csv")
        ),
    }
    for what, one in said.items():
        assert one.status == 0, (what, one.err)
    flat = {what: one.out.replace("\n", "") for what, one in said.items()}
    assert str(folder) in flat["run"] and str(nasty / NASTY[0]) in flat["run"]
    assert NASTY[0] in flat["report"] and "[b]page.html" in flat["report"]
    assert "[/b]adapter" in flat["export"] and "[/i]rebuilt" in flat["replay"]
    assert "dose [/redacted] mg" in flat["predict"] and all(n in flat["predict"] for n in NASTY)
    assert "[/u].csv" in flat["to a file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", NASTY[0]),
        ("run", NASTY[0]),
        ("run", "--set", f"{NASTY[0]}=1"),
        ("run", "--set", f"model.name='./{NASTY[0]}'"),
        ("predict", NASTY[0], "w5"),
        ("export", NASTY[0], "new"),
        ("report", NASTY[0]),
        ("replay", NASTY[0]),
        ("plan", f"./{NASTY[0]}"),
        ("compare", NASTY[0]),
        ("site", "check", NASTY[0]),
        ("server", "status", NASTY[0]),
        ("run", "--set", f"name={ESCAPE}"),
    ],
)
def test_messages_quote_a_user_as_he_wrote(
    arguments: tuple[str, ...],
    forefed_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = forefed_command(*arguments)
    assert said.status == 2 and "Traceback" not in said.err, said
    quoted = "red\\x1b[0m" if ESCAPE in arguments[-1] else NASTY[0]
    assert quoted in said.err.replace("\n", "") and "\x1b" not in said.err


def test_consoles_are_made_at_one_place() -> None:
    root = Path(__file__).parents[1] / "src" / "forefed"
    made = re.compile(r"\bConsole\(|\bTextColumn\(|from_markup|markup=True")
    places = {p.name for p in root.rglob("*.py") if made.search(p.read_text(encoding="utf-8"))}
    assert places == {"terminal.py"}


def test_what_a_terminal_may_show() -> None:
    assert printable(f"a{ESCAPE}\u202eb\ud800") == "a\\x1b[31mred\\x1b[0m\\u202eb\\ud800"
    assert one_line("a\nb\tc") == "a\\nb\\tc" and one_line("abcdef", 4) == "abc…"


def rows_with_everything() -> list[dict[str, object]]:
    long = "w5 " * 80
    return [
        {"id": 7, "text": f'{long}"quoted", and\na line', "predicted": "mine", "tags": ["a"]},
        {"id": 8, "text": "=1+1", "predicted": None, "tags": []},
        {"id": 9, "text": "[/redacted] ✓", "predicted": "x", "tags": ["b", "c"]},
    ]


def test_predictions_in_every_format(
    finished: dict[str, Path], forefed_command: Command, tmp_path: Path
) -> None:
    """All columns of the input, the class and the probability of every class, one row each."""
    rows = rows_with_everything()
    file = write_lines(tmp_path / "new.jsonl", rows)
    run = finished["classification"]
    tables = {}
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        said = forefed_command("predict", run, "--file", file, "--output", tmp_path / name)
        assert said.status == 0 and "3 rows" in said.out, said
        tables[name] = tmp_path / name
    asked = ("predict", run, "--file", file, "--format")
    with tables["out.csv"].open(newline="", encoding="utf-8") as text:
        as_csv = list(csv.DictReader(text))
    as_json = [json.loads(line) for line in tables["out.jsonl"].read_text().splitlines()]
    assert as_json == parquet.read_table(tables["out.parquet"]).to_pylist()
    for found, read, row in zip(as_json, as_csv, rows, strict=True):
        assert {name: found[name] for name in row} == row and found["predicted_2"] in CLASSES
        chances = {name: found[f"p_{name}"] for name in CLASSES}
        assert sum(chances.values()) == pytest.approx(1)
        assert max(chances, key=chances.__getitem__) == found["predicted_2"]
        assert read["text"] == row["text"] and float(read["p_tree"]) == chances["tree"]
    assert forefed_command(*asked, "jsonl").out == tables["out.jsonl"].read_text()
    piped = csv.DictReader(io.StringIO(forefed_command(*asked, "csv").out, newline=""))
    assert list(piped) == as_csv


def test_predictions_of_texts_and_pairs(
    finished: dict[str, Path], forefed_command: Command
) -> None:
    said = forefed_command("predict", finished["pairs"], "w5", "w6", "--format", "jsonl")
    (row,) = map(json.loads, said.out.splitlines())
    assert (row["text1"], row["text2"]) == ("w5", "w6") and {"p_True", "p_False"} <= row.keys()


def test_a_pipe_gets_one_whole_row_a_line(
    finished: dict[str, Path], forefed_command: Command, tmp_path: Path
) -> None:
    texts = [f"w5 {'w6 ' * 200}{i}" for i in range(50)]
    texts[3] += "\nsecond line"
    file = write_lines(tmp_path / "new.jsonl", [{"text": text} for text in texts])
    said = forefed_command("predict", finished["classification"], "--file", file)
    shown = said.out.splitlines()
    assert len(shown) == 50
    assert all(one_line(text) in line for text, line in zip(texts, shown, strict=True))


def test_a_text_may_begin_with_a_dash(finished: dict[str, Path], forefed_command: Command) -> None:
    run = finished["classification"]
    texts = ["-5 degrees", "w5", "-o or so", "--- a line", "-5", "- w6"]
    said = forefed_command("predict", run, *texts)
    assert said.status == 0, said.err
    assert all(line.endswith(text) for line, text in zip(said.out.splitlines(), texts, strict=True))
    after = forefed_command("predict", run, "--", "--file")
    assert after.status == 0 and after.out.rstrip().endswith("--file")
    assert forefed_command("predict", run, "--fiel", "x.csv").status == 2


PREDICT = {
    "both": (["w5", "--file", "{file}"], ["not both"]),
    "no such format": (["w5", "--format", "xls"], ["--format xls", "csv, jsonl, parquet"]),
    "no suffix": (["w5", "--output", "{new}/out"], ["suffix", "--format"]),
    "exists": (["w5", "--output", "{file}"], ["exists already"]),
    "no folder": (["w5", "--output", "{new}/a/b.csv"], ["there is no folder"]),
    "below a file": (["w5", "--output", "{file}/b.csv"], ["there is no folder"]),
    "parquet to a pipe": (["w5", "--format", "parquet"], ["--output"]),
    "no such file": (["--file", "{new}/none.csv"], ["none.csv"]),
    "no such column": (["--file", "{other}"], ["'text'", "txt"]),
    "not UTF-8": (["w5", "w\udce9"], ["text 2", "UTF-8"]),
}


@pytest.mark.parametrize("what", PREDICT)
def test_mistaken_predictions(
    what: str, finished: dict[str, Path], forefed_command: Command, tmp_path: Path
) -> None:
    arguments, words = PREDICT[what]
    file = write_lines(tmp_path / "new.jsonl", [{"text": "w5"}])
    other = write_lines(tmp_path / "other.jsonl", [{"txt": "w5"}])
    places = {"file": str(file), "new": str(tmp_path), "other": str(other)}
    given = [argument.format(**places) for argument in arguments]
    mistake(forefed_command("predict", finished["classification"], *given), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.jsonl", "other.jsonl"]


def test_the_version(forefed_command: Command) -> None:
    from forefed import __version__

    said = forefed_command("--version")
    assert (said.status, said.out) == (0, f"forefed {__version__}\n")


def test_shell_completion(forefed_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_FOREFED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "forefed pre")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert forefed_command().out.split() == ["predict"]
    monkeypatch.delenv("_FOREFED_COMPLETE")
    assert "--install-completion" in forefed_command("--help").out


def test_list_alone_lists_everything(forefed_command: Command) -> None:
    said = forefed_command("list")
    words = set(said.out.split())
    for registry in LISTS.values():
        assert set(registry.kinds()) <= words
    assert set(STRATEGIES) | {"minilm"} <= words
    assert QUESTIONS.keys() == LISTS.keys()


def test_list_says_what_settings_mean(forefed_command: Command) -> None:
    said = " ".join(forefed_command("list", "codecs", "--verbose").out.split())
    assert "bits = 8" in said and "one scale beside" in said


def test_every_setting_has_a_schema() -> None:
    """Every slot offers every kind, every kind its settings, and what is described says so."""
    schema = config_schema()
    assert schema["properties"].keys() == Config.model_fields.keys()
    for place, slot in SLOTS.items():
        if "." in place:
            continue
        offered = schema["properties"][place].get("items", schema["properties"][place])["anyOf"]
        assert offered[-1]["enum"] == slot.registry.kinds()
        for entry, one in zip(slot.registry, offered[:-1], strict=True):
            assert one["properties"].keys() == entry.model_fields.keys()
            assert one["additionalProperties"] is False and "required" not in one
    assert "$ref" not in json.dumps(schema)
    rounded = schema["properties"]["codec"]["anyOf"][1]["properties"]["bits"]
    assert rounded["description"].startswith("Bits of an element")


def test_the_schema_can_be_written(forefed_command: Command, tmp_path: Path) -> None:
    said = forefed_command("schema", "-o", tmp_path / "schema.json")
    assert said.status == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == config_schema()
    assert json.loads(forefed_command("schema").out) == config_schema()
