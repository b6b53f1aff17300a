"""The command line. Every command is a few lines around a function of the library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forefed.core.boundary import STOPPED, USER, guarded
from forefed.core.commands import AcceptChanges, TextCommand
from forefed.core.errors import UserError
from forefed.core.places import new_place
from forefed.core.terminal import console, one_line, printable, styled

if TYPE_CHECKING:
    from forefed.config.config import Config

app = typer.Typer(
    name="forefed",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Federated fine-tuning of language models for private text and small machines.\n\n"
        "Start with [bold]forefed demo[/bold], then [bold]forefed run --set data.source.kind=files "
        "--set data.source.path=mine.jsonl[/bold]."
    ),
)
out = console()
err = console(stderr=True)

ConfigFile = Annotated[
    Path | None, typer.Argument(help="TOML file; or the folder of a run, for its own settings.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="One setting, for example client.batch_size=16."
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, for example runs/demo.")]


def _version(asked: bool) -> None:
    if asked:
        from forefed import __version__

        typer.echo(f"forefed {__version__}")
        raise typer.Exit


@app.callback()
def forefed(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    pass


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="File or folder with your rows.")],
    test: Annotated[
        Path | None, typer.Option(help="File or folder with labelled rows to test on.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="New configuration file.")] = Path(
        "mine.toml"
    ),
) -> None:
    """Look at a file and write a first configuration for it, with a reason beside every line.

    forefed init notes.csv
    """
    from forefed.config.init import Machine, write_first

    out.print(printable(write_first(data, test, output, Machine.here())), soft_wrap=True)


@app.command("run")
def run_command(
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, bit for bit.")
    ] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Run a federation on this machine and keep its record in runs/NAME.

    Without a file the defaults run: MiniLM on the standard library's docstrings.
    A strategy's defaults can be changed setting by setting:

    forefed run --set strategy=fedavg --set adapter.r=4 --set rounds=50 --set name=try1
    """
    from forefed.run import run
    from forefed.run.progress import Progress

    chosen = _configure(config, sets, here=resume)
    with Progress(out, chosen) as progress:
        result = run(chosen, resume=resume, callbacks=[progress], accept_changes=accept_changes)
    progress.closing(result)
    raise typer.Exit(result.status)


@app.command()
def demo(
    sets: Sets = None,
) -> None:
    """Fine-tune MiniLM on Python's own docstrings, 40 clients, offline, a few minutes."""
    from forefed.report import read_run, write_report
    from forefed.run import configure, run
    from forefed.run.demo import DEMO, next_steps
    from forefed.run.progress import Progress

    chosen = configure(sets=sets or (), base=DEMO)
    with Progress(out, chosen) as progress:
        result = run(chosen, resume=(chosen.folder / "config.json").exists(), watcher=progress)
    progress.closing(result)
    write_report([read_run(result.folder)], result.folder / "report.html")
    if chosen.data.task.head == "classification":  # what ``baselines`` knows
        out.print("What costs less, on the same test rows:")
        _print_baselines(chosen)
        write_report([read_run(result.folder)], result.folder / "report.html")
    out.print(next_steps(result))
    raise typer.Exit(result.status)


@app.command()
def compare(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="One study (.toml with methods), or one configuration per method."),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B",
            help="Compare under each of these values; strategy.name=spry,fedavg names methods.",
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Choose the best for each method, on validation."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds per cell (default: 3).")] = None,
    sets: Sets = None,
    name: Annotated[
        str | None, typer.Option(help="Folder below compare/ (default: study).")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Cells at a time (default: one per GPU, or per core).")
    ] = None,
) -> None:
    """Compare methods over seeds and conditions: one table with intervals, one HTML report.

    Every cell of the grid (method x condition x seed) is a run in a process of its own; with one
    seed all methods get the same clients, cohorts and batches. The same command again goes on where
    it stopped, and leaves finished cells as they are.

    forefed compare examples/spry.toml examples/fedavg.toml --seeds 3 --over partition.alpha=0.1,1

    forefed compare examples/study.toml
    """
    from forefed.compare.show import compare_from_options

    compare_from_options(out, files or [], over, tune, seeds, sets, name, jobs)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are overlaid.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (default: in the run).")
    ] = None,
) -> None:
    """Write one self-contained HTML file with curves, partition, settings and results."""
    from forefed.report import read_run, write_report
    from forefed.report.content import terminal
    from forefed.report.headline import headline
    from forefed.report.page import terminal_tables, warnings
    from forefed.report.read import run_labels

    if output is not None:
        new_place(output, "--output")
    read = [read_run(folder) for folder in runs]
    target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    write_report(read, target)
    for table in terminal_tables(read):
        out.print(terminal(table))
    out.print(styled("\n", (printable(headline(read)), "bold")))
    for text in warnings(read, run_labels(read)):
        out.print(styled((printable(text), "yellow")))
    out.print(f"report: {target}", soft_wrap=True)


@app.command()
def annotate(
    data: Annotated[Path, typer.Argument(help="A file of rows, some or none of them labelled.")],
    budget: Annotated[int, typer.Option(help="How many rows to label next.")],
    model: Annotated[str, typer.Option(help="Whose features are read.")] = "minilm",
    text: Annotated[str, typer.Option(help="Column of the texts (default: guessed).")] = "",
    label: Annotated[str, typer.Option(help="Column of the labels (default: guessed).")] = "",
    to: Annotated[
        Path | None, typer.Option(help="The list, a CSV file (default: DATA.to-label.csv).")
    ] = None,
) -> None:
    """Say which rows to label next: first a well spread set, then those whose labels surprise.

    forefed annotate mine.csv --budget 50
    """
    from forefed.use.annotate import annotate as choose

    place, count, of = choose(data, budget, model, text, label, to, lambda what: tell(what))
    out.print(f"{count:,} of {of:,} rows to label: {place}", soft_wrap=True)


@app.command()
def discover(
    data: Annotated[Path, typer.Argument(help="A file of rows.")],
    epsilon: Annotated[float, typer.Option(help="What one answer may tell of its user.")],
    of: Annotated[
        str, typer.Option(help="labels, or words: those that the model has to cut into pieces.")
    ] = "words",
    column: Annotated[str, typer.Option(help="Of labels or texts (default: guessed).")] = "",
    user: Annotated[str, typer.Option(help="Column: whose row (default: a user a row).")] = "",
    party: Annotated[str, typer.Option(help="Column: who collects (default: one party).")] = "",
    top: Annotated[int, typer.Option(help="How many to find.")] = 10,
    model: Annotated[str, typer.Option(help="Whose tokeniser knows words.")] = "minilm",
    prune: Annotated[
        bool, typer.Option("--prune", help="Parties tell one another what is rare (TAPS).")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> None:
    """Find labels or words that many users hold, from one random answer of each (local DP).

    Nothing is trained. A rehearsal on this machine: what is found stands beside what is true.

    forefed discover notes.csv --of words --epsilon 4 --user patient
    """
    from forefed.use import discover as use

    to = None if json is None else new_place(json, "discover")
    found = use.discover(
        data, epsilon, of, column, user, party, top, model, prune, say=lambda what: tell(what)
    )
    out.print(use.table(found, epsilon, of))
    for line in use.notes(found, epsilon):
        out.print(line, soft_wrap=True)
    if to is not None:
        use.write(found, to, epsilon, of)


@app.command()
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="New folder for the adapter.")],
    form: Annotated[
        str, typer.Option("--as", help="peft, lora (plain, small), model (merged, no PEFT needed).")
    ] = "peft",
    best: Annotated[
        bool, typer.Option("--best", help="The parameters of the best evaluation, not the last.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also of a run that did not finish, or diverged.")
    ] = False,
) -> None:
    """Write a finished run's model, its tokeniser and a card with code that uses them."""
    from forefed.use import predict as use
    from forefed.use.export import export_adapter

    note = export_adapter(run, new_place(folder, "export", folder=True), form, force, best)
    tell(note)
    tell(use.told(run))
    out.print(f"written: {folder} (its README.md has the code that uses it)", soft_wrap=True)


@app.command(cls=TextCommand)
def predict(
    run: RunFolder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; two per example for pairs, a question and its context."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file with the columns that the run was trained on.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="New file: all columns, the prediction, probabilities.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, jsonl or parquet (default: by the output's suffix).")
    ] = None,
    client: Annotated[
        int | None,
        typer.Option(help="Answer as this client (from 0), where clients keep heads of their own."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="At most, of what a language model says (100).")
    ] = None,
) -> None:
    """Label texts with a run's model, continue them, or answer questions, as it was trained to.

    forefed predict runs/mine "The soup was cold." "-5 degrees outside."

    forefed predict runs/mine --file new.csv --output labelled.csv
    """
    from forefed.use import predict as use
    from forefed.use import predictions

    asked = predictions.format_of(format, output)
    if file is not None and texts:
        raise UserError("predict: give texts or a file of them (--file), not both")
    rows, wanted = use.texts_of_file(run, file) if file else (None, texts or [])
    found = use.predict(run, wanted, client, tokens)
    tell(use.told(run, client))
    if asked is None:
        width = max(20, out.width - 30) if out.is_terminal else None
        for one in found:
            said = styled((one_line(one.words), "bold"), "  ", (one_line(one.text, width), "dim"))
            out.print(said, soft_wrap=True)
        return
    given = use.rows_of_texts(run, wanted) if rows is None else rows
    table = predictions.with_predictions(given, found, use.classes_of(run))
    if output is None:
        typer.echo(predictions.as_text(table, asked), nl=False)
    else:
        predictions.write_predictions(table, asked, output)
        out.print(f"predictions: {output} ({table.num_rows:,} rows)", soft_wrap=True)


def tell(note: str) -> None:
    """A note beside the output, which may be read by a program."""
    if note:
        err.print(f"note: {printable(note)}", style="yellow", soft_wrap=True)


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(help="Folder of a run, or the scalars.log in it.")],
    folder: Annotated[
        Path | None, typer.Option("--export", help="New folder for the rebuilt adapter.")
    ] = None,
) -> None:
    """Rebuild a run's parameters from its first values and its scalar log, and verify them.

    For runs whose clients send slopes (codec.kind = 'scalars', 'one_byte'). Nobody is asked, and no
    text is read.
    """
    from forefed.run.rebuild import export_rebuilt, replay_log

    if folder is not None:
        new_place(folder, "--export", folder=True)
    if not log.exists():
        raise UserError(f"{log}: there is no run and no log here")
    found = replay_log(log)
    checked = ", ".join(map(str, found.digests)) or "none yet"
    out.print(f"rounds: {found.state.round}; digests compared and equal: {checked}")
    if found.torn:
        out.print(f"a torn last message of {found.torn} bytes was left out")
    out.print(f"digest: {found.digest}")
    if folder is not None:
        export_rebuilt(found, folder)
        out.print(f"adapter: {folder}", soft_wrap=True)


@app.command("baselines")
def baselines_command(config: ConfigFile = None, sets: Sets = None) -> None:
    """What a run has to beat: majority, TF-IDF, pooled probe, clients alone, closed-form head.

    forefed baselines mine.toml
    """
    from forefed.run import configure

    _print_baselines(configure(config, sets or ()))


def _print_baselines(config: Config) -> None:
    from forefed.compare.baselines import baselines, keep

    found = baselines(config, err.print)
    keep(config, found)
    for line in found:
        out.print(f"{line['name']:12} {line['accuracy']:.3f}  {line['about']}")


@app.command("forget")
def forget_command(
    client: Annotated[int, typer.Argument(help="Number of the client, from 0.")],
    run: RunFolder,
) -> None:
    """Take a client's rows out of a run's solved head, exactly (of adapters no such thing holds).

    forefed forget 3 runs/demo
    """
    from forefed.use.forget import forget

    left = forget(run, client)
    out.print(
        f"{run}: the head is that of {left.line['examples']:,} rows without client {client}, as if "
        "it had never been there. What adapters learned in later rounds stays: run anew for that."
    )


@app.command("plan")
def plan_command(
    model: Annotated[
        str,
        typer.Argument(
            help="minilm, a local folder, hub:ORG/NAME; or a run's configuration (.toml)."
        ),
    ] = "minilm",
    memory: Annotated[
        str | None, typer.Option(help="Budget for weights and a training step, e.g. 4GB.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Texts per step (default: 8).")] = None,
    seq: Annotated[
        int | None, typer.Option(help="Tokens per text; plan for the longest (default: 128).")
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(help="Adapter units per client (default: an eighth of the blocks)."),
    ] = None,
    late: Annotated[
        bool, typer.Option("--late", help="The client's units are the last, not the first.")
    ] = False,
    labels: Annotated[
        int | None, typer.Option(help="Classes; 0 for a language model (default: 2).")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Adapter setting, e.g. kind=lora or u=8."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16, float16, int8, int4; several are compared."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps (default: auto).")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Measure nothing: the noise with which this configuration costs so much."
        ),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="For --epsilon (default: the configuration's).")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file too.")
    ] = None,
) -> None:
    """Measure this machine: which way of getting a gradient fits its memory?

    Compares backprop, recomputation, forward mode and finite differences by peak memory, time and
    noise, and recommends one, also when it is backprop. A minute for MiniLM; deep models are
    measured at a few of their blocks.

    forefed plan minilm --memory 300MB --seq 512
    """
    from forefed.core.files import write_json
    from forefed.plan.show import plan_page
    from forefed.run.planning import noise_from_options, plan_from_options

    if delta is not None and epsilon is None:
        raise UserError("--delta is for --epsilon; give both")
    if epsilon is not None:
        for line in noise_from_options(model, epsilon, delta):
            out.print(styled(line), soft_wrap=True)
        return
    if json is not None:
        new_place(json, "--json")
    with out.status(styled("planning")) as status:
        plan = plan_from_options(
            model,
            device,
            adapter or [],
            {
                "batch": batch,
                "seq": seq,
                "units": units,
                "labels": labels,
                "place": "late" if late else "early",
            },
            memory,
            precision,
            lambda text: status.update(styled(text)),
        )
    out.print(plan_page(plan, out.width))
    if json is not None:
        write_json(json, plan.to_json())
        out.print(f"written: {json}", soft_wrap=True)


@app.command("list")
def list_command(
    what: Annotated[
        str | None,
        typer.Argument(
            help="strategies, models, or a slot: engines, sources, tasks, partitions, adapters, "
            "codecs, optimisers, ... (default: everything)"
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also what each setting means.")
    ] = False,
) -> None:
    """Explain the choices of a slot, one line each."""
    from forefed.config.catalogue import choices_tables

    for table in choices_tables(what, verbose):
        out.print(table)


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (default: the terminal).")
    ] = None,
) -> None:
    """The JSON Schema of a configuration file, for editors that complete TOML.

    forefed schema -o forefed.schema.json, and as the first line of mine.toml:
    #:schema ./forefed.schema.json
    """
    from json import dumps

    from forefed.config.schema import config_schema
    from forefed.core.files import write_json

    if output is None:
        typer.echo(dumps(config_schema(), indent=1))
    else:
        write_json(new_place(output, "--output"), config_schema())
        out.print(f"schema: {output}", soft_wrap=True)


@app.command()
def check(config: ConfigFile = None, sets: Sets = None) -> None:
    """Say what would run on which rows, and what cannot: no training, no network."""
    from forefed.config.catalogue import plan_table
    from forefed.config.checking import check_run, check_table
    from forefed.config.reveals import reveals

    chosen = _configure(config, sets)
    checked = check_run(chosen)
    out.print(plan_table(chosen))
    out.print(check_table(checked))
    for note in checked.notes:
        out.print(printable(f"note: {note}"), style="yellow")
    out.print(reveals(chosen), soft_wrap=True)
    out.print("These settings work together.", style="green")


@app.command("audit")
def audit_command(
    config: ConfigFile = None,
    sets: Sets = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Messages per attack, size of client and round.")
    ] = 12,
    own_rows: Annotated[
        bool,
        typer.Option(
            "--own-rows", help="Messages of the configuration's own rows, not of synthetic ones."
        ),
    ] = False,
    optimise: Annotated[
        bool, typer.Option("--optimise", help="Rebuild texts by optimisation, too (slow).")
    ] = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file too.")
    ] = None,
) -> None:
    """Measure what a curious server learns from one message of a client.

    The run's own client makes real messages of synthetic rows, and known attacks are run on them:
    labels, gradient, tokens, rows, and whether a guessed text was there. Of a run's folder its
    trained parameters are attacked, and audit.json is kept there.

    forefed audit mine.toml

    forefed audit runs/mine --trials 40
    """
    from forefed.audit import audit
    from forefed.audit.show import audit_page, keep
    from forefed.core.files import write_json

    if json is not None:
        new_place(json, "--json")
    chosen = _configure(config, sets)
    run = config if config is not None and config.is_dir() else None
    with out.status(styled("auditing")) as status:
        found = audit(
            chosen,
            run,
            trials=trials,
            own_rows=own_rows,
            optimise=optimise,
            say=lambda text: status.update(styled(text)),
        )
    out.print(audit_page(found))
    if json is not None:
        write_json(json, found.to_json())
        out.print(f"written: {json}", soft_wrap=True)
    if run is not None:
        out.print(f"kept: {keep(found, run)}", soft_wrap=True)


def _deployment() -> None:
    """The commands of a deployment, which are light until one is called."""
    from forefed.deploy.commands import peer, server, site

    app.add_typer(site, name="site")
    app.add_typer(server, name="server")
    app.add_typer(peer, name="peer")


_deployment()


def _configure(config: Path | None, sets: list[str] | None, here: bool = False) -> Config:
    """The settings of a file, or of a run's folder; ``here``: of that very folder, which may have
    been moved or copied since, or is named from another working directory."""
    from forefed.config.config import configure

    if config is not None and config.is_dir():
        from forefed.run.record import read_config

        base = read_config(config)
        if here:
            folder = config.resolve()
            base = {**base, "out": str(folder.parent), "name": folder.name}
        return configure(sets=sets or (), base=base)
    return configure(config, sets or ())


def main() -> None:
    """Entry point; ``core/boundary.py`` says what ends a command, and with which status."""
    sys.exit(guarded(_command, _say))


def _command() -> int:
    try:
        code = app(prog_name="forefed", standalone_mode=False) or 0
    except typer.Abort:
        code = STOPPED
    except Exception as error:
        show = getattr(error, "show", None)  # click's own usage errors print themselves
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", USER))
    if code == STOPPED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return int(code)


def _say(text: str) -> None:
    head, found, rest = text.partition("error:")
    shown = styled((found, "red"), rest) if found and not head else styled(text)
    err.print(shown, soft_wrap=True)


if __name__ == "__main__":
    main()
