"""What would run, what it costs, what it has to beat, and what its messages reveal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forefed.cli.app import ConfigFile, Sets, configured, err, out
from forefed.core.errors import UserError
from forefed.core.places import new_place
from forefed.core.terminal import printable, styled

if TYPE_CHECKING:
    from forefed.config.config import Config

commands = typer.Typer()


@commands.command("baselines")
def baselines_command(config: ConfigFile = None, sets: Sets = None) -> None:
    """What a run has to beat: majority, TF-IDF, pooled probe, clients alone, closed-form head.

    forefed baselines mine.toml
    """
    print_baselines(configured(config, sets))


def print_baselines(config: Config) -> None:
    from forefed.compare.baselines import baselines, keep

    found = baselines(config, err.print)
    keep(config, found)
    for line in found:
        out.print(f"{line['name']:12} {line['accuracy']:.3f}  {line['about']}")


@commands.command("plan")
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


@commands.command("list")
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


@commands.command()
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


@commands.command()
def check(config: ConfigFile = None, sets: Sets = None) -> None:
    """Say what would run on which rows, and what cannot: no training, no network."""
    from forefed.config.catalogue import plan_table
    from forefed.config.checking import check_run, check_table
    from forefed.config.reveals import reveals

    chosen = configured(config, sets)
    checked = check_run(chosen)
    out.print(plan_table(chosen))
    out.print(check_table(checked))
    for note in checked.notes:
        out.print(printable(f"note: {note}"), style="yellow")
    out.print(reveals(chosen), soft_wrap=True)
    out.print("These settings work together.", style="green")


@commands.command("audit")
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
    chosen = configured(config, sets)
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
