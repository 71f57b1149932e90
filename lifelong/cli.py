"""The command line: one function a command, each of which only composes and calls.

One file, though a long one: who looks for a command or a flag finds all of them here.

Exit codes: 0 done; 1 an error, told in one line on standard error; 2 the command was misspelt;
3 a check found something wrong; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer

from infra.errors import LifelongError, SettingsError, one_line

if TYPE_CHECKING:
    from infra.settings import LogSettings, Settings

app: Final = typer.Typer(
    name="lifelong",
    help="Turns a user's whole behavior history into features for click-through-rate ranking,"
    " and keeps them fresh.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench: Final = typer.Typer(
    help="Measures speed against peers, in the same run.", no_args_is_help=True
)
app.add_typer(bench, name="bench")
store_app: Final = typer.Typer(
    help="Backs an LMDB store up, puts a backup back, makes its file smaller.",
    no_args_is_help=True,
)
app.add_typer(store_app, name="store")
letters_app: Final = typer.Typer(
    help="Tells what was refused and why, and sends it again.", no_args_is_help=True
)
app.add_typer(letters_app, name="deadletters")

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML); default: lifelong.toml.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in --set store.length=2000."),
]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap", metavar="HOST:PORT", help="Kafka to connect to.")
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="lmdb://PATH, aerospike://HOST:PORT/NAMESPACE, redis://HOST:PORT/DATABASE.",
    ),
]
BundlePath = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="Model bundle; default: the shipped one."),
]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="Which of [[sources]]; needed if several."),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="NAME",
        help="Read this one of [[sources]]; may be given several times; default: all.",
    ),
]
LettersSource = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="NAME", help="Of its topic; default: of broker.dead_letter_topic."
    ),
]
Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", metavar="REASON", help="Of this reason; may be given several times."),
]
Delimiter = Annotated[str, typer.Option(help="What is between the cells of CSV files.")]
Encoding = Annotated[str, typer.Option(help="In which text files are written.")]
Chart = Annotated[Path | None, typer.Option(help="Draw the bars into this PNG or SVG.")]
JsonOut = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output."),
]


FLAGS: Final = {
    "broker.bootstrap": "--bootstrap",
    "store.url": "--store",
    "bundle.path": "--bundle",
    "worker.metrics_port": "--metrics-port",
    "scorer.host": "--host",
    "scorer.port": "--port",
    "scorer.processes": "--processes",
}
"""The settings that have a flag of their own, for errors to name what the user typed."""

INTERRUPTED: Final = 130


def main() -> NoReturn:
    """Run the command line; every error that a user can cause ends in one line."""
    # Torch's threads would spin while they wait: beside anything else that runs, a step of training
    # takes ten times the processor time. Read when torch is loaded, by the processes we start too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except LifelongError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except SystemExit as ended:
        # Typer takes the interrupt itself, and ends without a word.
        if ended.code == INTERRUPTED:
            _fail("interrupted", INTERRUPTED)
        raise
    except BrokenPipeError:
        # The reader of our output went away (`lifelong ... | head`); nothing is wrong here.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


@app.command()
def demo(
    *,
    keep: Annotated[bool, typer.Option(help="Leave everything running until Ctrl-C.")] = False,
    events: Annotated[
        int | None, typer.Option(min=100, help="Live purchases to stream; default: all 158,061.")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Events a second; 0: as fast as it goes.")
    ] = 20_000,
    broker: Annotated[
        str, typer.Option(help="auto (Apache Kafka, or the mock), mock, or HOST:PORT.")
    ] = "auto",
    store: StoreUrl = None,
    system: Annotated[
        str,
        typer.Option(
            help="Whose shipped bundle: encode, sdim or twin, or all, one after another; --bundle"
            " names another."
        ),
    ] = "encode",
    bundle: BundlePath = None,
    json_out: JsonOut = None,
) -> None:
    """Stream real purchases through Kafka into sequences, interests and CTRs."""
    from lifelong.demo.run import DemoOptions, run_demo

    _log()
    with _terminable():
        report = run_demo(
            DemoOptions(
                keep=keep,
                events=events,
                rate=rate,
                broker=broker,
                store=store,
                system=system,
                bundle=bundle,
            ),
            quiet=json_out == "-",
        )
    _write_json(report, json_out)


@app.command()
def dashboards(
    *,
    render: Annotated[
        Path, typer.Option(metavar="DIR", help="Draw each dashboard there, as a PNG.")
    ],
    prometheus: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Whose data is drawn; default: one of its own, beside a demo."
        ),
    ] = None,
    hours: Annotated[
        float, typer.Option(min=0.01, help="Time shown of --prometheus, until now.")
    ] = 6.0,
    json_out: JsonOut = None,
) -> None:
    """Draw the dashboards from a Prometheus (needs the extra `bench`)."""
    _log()
    with _terminable(), _extra("bench"):
        from lifelong.dashboards.run import DashboardOptions, run_dashboards

        report = run_dashboards(DashboardOptions(render, prometheus, hours), quiet=json_out == "-")
    _write_json(report, json_out)


@app.command()
def broker(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 9092,
    directory: Annotated[Path, typer.Option(help="Where its data is kept.")] = Path(
        ".lifelong/kafka"
    ),
    kind: Annotated[str, typer.Option(help="auto, apache or mock.")] = "auto",
    config: Config = None,
    assignments: Assignments = None,
) -> None:
    """Run a local Kafka with the topics that the settings name, until Ctrl-C."""
    from lifelong.broker import run_broker

    settings = _settings(config, assignments)
    with _terminable():
        run_broker(settings.broker, directory, port, kind)


@app.command()
def worker(
    *,
    bootstrap: Bootstrap = None,
    store: StoreUrl = None,
    bundle: BundlePath = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of /metrics and /health.")
    ] = None,
    source: Sources = None,
    config: Config = None,
    assignments: Assignments = None,
) -> None:
    """Consume behavior events into sequences and keep interests fresh."""
    from streaming.worker import run_worker

    settings = _settings(
        config,
        assignments,
        {
            "broker.bootstrap": bootstrap,
            "store.url": store,
            "bundle.path": bundle,
            "worker.metrics_port": metrics_port,
        },
    )
    run_worker(_with_bundle(settings.narrowed(source or [])))


@app.command()
def scorer(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="One a core.")] = None,
    store: StoreUrl = None,
    bundle: BundlePath = None,
    config: Config = None,
    assignments: Assignments = None,
) -> None:
    """Answer ranking requests."""
    from scorer.server import run_scorer

    settings = _settings(
        config,
        assignments,
        {
            "scorer.host": host,
            "scorer.port": port,
            "scorer.processes": processes,
            "store.url": store,
            "bundle.path": bundle,
        },
    )
    run_scorer(_with_bundle(settings))


@app.command()
def replay(
    file: Annotated[
        Path, typer.Argument(help="Events as .parquet, .csv or .jsonl (also .gz and .zst).")
    ],
    *,
    rate: Annotated[float, typer.Option(min=0, help="Events a second; 0: as fast as it goes.")] = 0,
    resume: Annotated[
        Path | None, typer.Option(help="Keep the position in this file and go on from it.")
    ] = None,
    on_bad: Annotated[str, typer.Option(help="stop or skip (counted).")] = "stop",
    source: Source = None,
    delimiter: Delimiter = ",",
    encoding: Encoding = "utf-8",
    bootstrap: Bootstrap = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Send the events of a file to Kafka, as new ones: sent again, most of them count twice.

    Go on with --resume; a whole history comes in with backfill.
    """
    from lifelong.transfers import run_replay
    from streaming.files.formats.text import Text

    settings = _settings(config, assignments, {"broker.bootstrap": bootstrap})
    text = Text(encoding, delimiter)
    with _terminable():
        chosen = settings.reading(source)
        result = run_replay(chosen, file, rate=rate, resume=resume, on_bad=on_bad, text=text)
    _write_json(result, json_out)


@app.command()
def backfill(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="Files of events (.parquet, .csv, .jsonl; also .gz and .zst), folders, patterns.",
        ),
    ] = None,
    *,
    from_topic: Annotated[
        bool, typer.Option("--from-topic", help="And all that the sources' topics hold now.")
    ] = False,
    job: Annotated[
        str, typer.Option(metavar="NAME", help="By which it is known again.")
    ] = "history",
    cut: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="ISO 8601 or ms since epoch: what was before is as the inputs have it, what came"
            " then the stream's; default: right behind the newest event, of a topic 5 minutes ago"
            " at the latest.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Begin a job that is finished anew.")
    ] = False,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Of N processes that share the job, which this is.")
    ] = "1/1",
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For its files; default: .lifelong/history/NAME."),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(min=1, help="Partitions of the topic; default: asked from Kafka."),
    ] = None,
    on_bad: Annotated[str, typer.Option(help="stop or skip (counted).")] = "stop",
    source: Sources = None,
    delimiter: Delimiter = ",",
    encoding: Encoding = "utf-8",
    bootstrap: Bootstrap = None,
    store: StoreUrl = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Merge users' whole histories into the store, before what the live stream has of them.

    A job is all of a user's history before a cut, so name all inputs together. Repeated in whatever
    format, or resumed after whatever ended it, it doubles nothing.
    """
    from lifelong.transfers import job_options, run_backfill
    from streaming.files.formats.text import Text

    settings = _settings(config, assignments, {"broker.bootstrap": bootstrap, "store.url": store})
    options = job_options(job, cut=cut, again=again, part=part)
    with _terminable():
        result = run_backfill(
            _with_bundle(settings.narrowed(source or [])),
            places or [],
            options,
            from_topic=from_topic,
            work=work,
            partitions=partitions,
            on_bad=on_bad,
            text=Text(encoding, delimiter),
        )
    _write_json(result, json_out)


@app.command()
def forget(
    users: Annotated[
        list[str] | None, typer.Argument(metavar="USER...", help="Ids of the users.")
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", help="Ids, one a line; beside those given.")
    ] = None,
    letters: Annotated[
        bool, typer.Option(help="Also their dead letters; otherwise Kafka is not asked.")
    ] = True,
    scrub: Annotated[
        bool,
        typer.Option(
            "--scrub",
            help="Have files of store and dead letters written anew, without what was deleted"
            " (LMDB: workers and scorers stopped).",
        ),
    ] = False,
    hash_ids: Annotated[
        bool, typer.Option("--hash-ids", help="Name users by a hash in what --json writes.")
    ] = False,
    bootstrap: Bootstrap = None,
    store: StoreUrl = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Delete users: their sequences, interests and dead letters; events up to now that come late
    stay out. The receipt says what was there, and what is left until when.
    """
    from lifelong.forgetting import ForgetOptions, run_forget

    settings = _settings(config, assignments, {"broker.bootstrap": bootstrap, "store.url": store})
    names = [*(users or []), *(_lines(file) if file is not None else [])]
    if not names or "" in names:
        raise SettingsError("name the users to delete, or a --file that lists them")
    options = ForgetOptions(letters=letters, scrub=scrub, hash_ids=hash_ids)
    receipt = run_forget(settings, names, options)
    _write_json(receipt, json_out)
    if receipt["problems"]:
        raise LifelongError(receipt["problems"][0])


@letters_app.command("list")
def letters_list(
    *,
    source: LettersSource = None,
    bootstrap: Bootstrap = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Count the letters by reason and topic."""
    from lifelong.letters import run_list

    settings = _of_letters(_settings(config, assignments, {"broker.bootstrap": bootstrap}), source)
    _write_json(run_list(settings, quiet=json_out == "-"), json_out)


@letters_app.command("show")
def letters_show(
    *,
    reasons: Reasons = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    source: LettersSource = None,
    bootstrap: Bootstrap = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Show the newest letters: where from, why, and what came."""
    from lifelong.letters import run_show

    settings = _of_letters(_settings(config, assignments, {"broker.bootstrap": bootstrap}), source)
    shown = run_show(settings, reasons=reasons or [], limit=limit, quiet=json_out == "-")
    _write_json(shown, json_out)


@letters_app.command("replay")
def letters_replay(
    *,
    reasons: Reasons = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many, at most.")] = None,
    source: LettersSource = None,
    bootstrap: Bootstrap = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Send the events of a reason again to where they came from; each goes once."""
    from lifelong.letters import run_replay as send

    settings = _of_letters(_settings(config, assignments, {"broker.bootstrap": bootstrap}), source)
    if not reasons:
        raise SettingsError(
            "name what was put right: --reason, as `lifelong deadletters list` has it"
        )
    _write_json(send(settings, reasons=reasons, limit=limit), json_out)


@store_app.command("backup")
def store_backup(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")],
    *,
    store: StoreUrl = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Copy the store as of now; workers and scorers go on meanwhile."""
    from lifelong.upkeep import run_backup

    settings = _settings(config, assignments, {"store.url": store})
    _write_json(run_backup(settings, target), json_out)


@store_app.command("restore")
def store_restore(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="What `store backup` wrote.")],
    *,
    replace: Annotated[
        bool, typer.Option(help="In the place of a store that is there, which is kept beside it.")
    ] = False,
    store: StoreUrl = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Put a backup in the store's place; stop workers and scorers first."""
    from lifelong.upkeep import run_restore

    settings = _settings(config, assignments, {"store.url": store})
    _write_json(run_restore(settings, source, replace=replace), json_out)


@store_app.command("compact")
def store_compact(
    *,
    store: StoreUrl = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Make the store's file as small as its data; stop workers and scorers first."""
    from lifelong.upkeep import run_compact

    settings = _settings(config, assignments, {"store.url": store})
    _write_json(run_compact(settings), json_out)


@app.command()
def train(
    run_config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="What to train, on what: a TOML file.")
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of the run; default: runs/<its name>.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another than the file's, as in --method sdim."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As in --set training.epochs=3."),
    ] = None,
    json_out: JsonOut = None,
) -> None:
    """Train a network (needs the extra `train`)."""
    with _extra("train"):
        from lifelong.learning import run_train
    with _terminable():
        overrides = _toml_values(assignments)
        result = run_train(run_config, out, overrides, method=method, resume=resume)
    _write_json(result, json_out)


@app.command()
def evaluate(
    subject: Annotated[
        Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="Directory of a run, or of a bundle.")
    ],
    *,
    part: Annotated[
        str | None,
        typer.Option(metavar="PART", help="validation or test; default: the test, if any."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run of DIN-L: for RI, and hits of the search."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run to compare with, users resampled."),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="Behaviors of the reference that a search should find.")
    ] = 100,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw figures there, as PNG and SVG.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As in --set data.path=elsewhere."),
    ] = None,
    json_out: JsonOut = None,
) -> None:
    """Measure a run or a bundle on held-out samples (needs the extra `train`)."""
    with _terminable(), _extra("train"):
        from lifelong.evaluate.run import EvaluateOptions, run_evaluate

        options = EvaluateOptions(
            part=part,
            reference=reference,
            baseline=baseline,
            overrides=_toml_values(assignments),
            plots=plots,
            top=top,
        )
        result = run_evaluate(subject, options, quiet=json_out == "-")
    _write_json(result, json_out)


@app.command()
def experiment(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help='A table or figure, as in encode-table-2; "list" prints them; "all" runs them.',
        ),
    ],
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help='Of a published data set; "shipped"; or a TOML file of your own data.',
        ),
    ] = "shipped",
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="next-item or rated; default: the data set's first, or what the file says.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this one, as tables call it, as in --method SDIM; may be repeated.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each configuration.")] = 3,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Of tables, figures and finished cells.")
    ] = Path("runs/experiments"),
    scale: Annotated[
        Literal["small", "full"], typer.Option(help="Sampled users, or all of them.")
    ] = "small",
    processes: Annotated[
        int, typer.Option(min=0, help="Cells measured at once; 0: one a core.")
    ] = 0,
    json_out: JsonOut = None,
) -> None:
    """Reproduce a table of the papers (needs the extra `train`)."""
    with _terminable(), _extra("train"):
        from lifelong.experiments.runner import Options, list_experiments, run_experiment

        if name == "list":
            _write_json(list_experiments(quiet=json_out == "-"), json_out)
            return
        options = Options(data, protocol, seeds, out, scale, processes, tuple(method or ()))
        result = run_experiment(name, options, quiet=json_out == "-")
    _write_json(result, json_out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Directory of a finished training run.")],
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle to write.")],
    *,
    half: Annotated[
        bool, typer.Option("--half", help="Have interests stored in 16 bits a number, not 32.")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(help="A run of DIN-L, by whose attention the scorer measures RI live."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Sign the bundle with this ed25519 key.")
    ] = None,
    json_out: JsonOut = None,
) -> None:
    """Export a trained model to a bundle, and check that both give the same CTRs."""
    with _extra("train"):
        from lifelong.learning import run_export
    _write_json(run_export(run, bundle, half=half, reference=reference, key=key), json_out)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Directory of a bundle.")],
    *,
    key: Annotated[
        Path, typer.Option(metavar="PEM", help="The ed25519 key; services have its public one.")
    ],
    json_out: JsonOut = None,
) -> None:
    """Verify a bundle and sign it, for services with the setting bundle.public_key."""
    from lifelong.signing import run_sign

    _write_json(run_sign(bundle, key, quiet=json_out == "-"), json_out)


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="Of a bundle's archive: .tar or .tar.gz.")],
    bundle: Annotated[Path, typer.Argument(help="Directory where the bundle is put.")],
    *,
    sha256: Annotated[str, typer.Option(metavar="HEX", help="Of the archive.")],
    json_out: JsonOut = None,
) -> None:
    """Fetch a bundle from a URL, and check it: for pods that have no volume with bundles."""
    from lifelong.fetching import run_fetch

    with _terminable():
        result = run_fetch(url, bundle, sha256)
    if json_out != "-":
        print(f"bundle {result['name']}, {result['bytes']:,} bytes, in {bundle}")
    _write_json(result, json_out)


@app.command()
def inspect(
    user: Annotated[str | None, typer.Argument(help="A user id; none: bundle and store.")] = None,
    *,
    last: Annotated[int, typer.Option(min=0, help="Behaviors to show.")] = 10,
    store: StoreUrl = None,
    bundle: BundlePath = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Show what is kept of a user: sequence, interests, what waits to be clustered."""
    from lifelong.inspection import run_inspect

    settings = _settings(config, assignments, {"store.url": store, "bundle.path": bundle})
    _write_json(run_inspect(_with_bundle(settings), user, last, quiet=json_out == "-"), json_out)


@app.command("compile")
def compile_(*, json_out: JsonOut = None) -> None:
    """Compile the kernels of worker and scorer now, so that no start has to: run it in an image."""
    from lifelong.kernels import compile_kernels

    result = compile_kernels()
    if json_out != "-":
        print(f"kernels of {', '.join(result['systems'])} compiled, {result['seconds']:g} s")
    _write_json(result, json_out)


@app.command()
def check(
    *,
    bootstrap: Bootstrap = None,
    store: StoreUrl = None,
    bundle: BundlePath = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="Of [[sources]]; default: all.")
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask nobody but a registry; tell what the source makes of these records: one a"
            " line in .jsonl, .ndjson, .tsv and .txt (also as kcat -J prints them) and, in base64,"
            " in .b64; one in any other file.",
        ),
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Look at settings, broker, topics, store and bundle; say what is wrong and what to do."""
    from lifelong.checks import run_checks

    settings = _settings(
        config,
        assignments,
        {"broker.bootstrap": bootstrap, "store.url": store, "bundle.path": bundle},
    )
    if sample is not None:
        from lifelong.samples import run_sample

        report = run_sample(settings.reading(source), sample, quiet=json_out == "-")
    else:
        chosen = settings if source is None else settings.reading(source)
        report = run_checks(_with_bundle(chosen), quiet=json_out == "-")
    _write_json(report, json_out)
    if not report["ok"]:
        raise typer.Exit(3)


@app.command()
def loadtest(
    *,
    scorer_url: Annotated[
        list[str] | None,
        typer.Option("--scorer", metavar="URL", help="A scorer to ask; may be repeated."),
    ] = None,
    rankings: Annotated[
        float, typer.Option(min=0, max=10_000, help="Rankings a second; 0: none.")
    ] = 50,
    events: Annotated[
        float, typer.Option(min=0, max=1_000_000, help="Events a second; 0: none.")
    ] = 0,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="For how long.")] = 60,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of a ranking.")] = 1000,
    users: Annotated[
        int, typer.Option(min=1, help="Made-up users, of whom events are sent.")
    ] = 10_000,
    users_file: Annotated[
        Path | None,
        typer.Option(help="Ids, one a line, of users to rank for; default: the made-up ones."),
    ] = None,
    items_file: Annotated[
        Path | None, typer.Option(help="Ids, one a line; default: the bundle's, by popularity.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="A file that holds the API key, or token, to ask with.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(min=0.01, help="Time within which an answer is of use.")
    ] = 2.0,
    max_p99_ms: Annotated[
        float | None, typer.Option(min=0, help="Fail (exit code 3) if rankings took longer.")
    ] = None,
    max_errors: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fail if a larger share of rankings was not answered, or of events not taken.",
        ),
    ] = None,
    bootstrap: Bootstrap = None,
    bundle: BundlePath = None,
    config: Config = None,
    assignments: Assignments = None,
    json_out: JsonOut = None,
) -> None:
    """Send events and ask for rankings at given rates, against a system that is deployed."""
    from lifelong.loadtest.run import Options, run_loadtest

    settings = _settings(
        config, assignments, {"broker.bootstrap": bootstrap, "bundle.path": bundle}
    )
    options = Options(
        scorers=tuple(scorer_url or ()),
        rankings=rankings,
        events=events,
        seconds=seconds,
        candidates=candidates,
        users=users,
        ranked=_ids(users_file, "--users-file"),
        items=_ids(items_file, "--items-file"),
        key=next(iter(_ids(key_file, "--key-file")), None),
        timeout_s=timeout_s,
        max_p99_ms=max_p99_ms,
        max_errors=max_errors,
    )
    with _terminable():
        report = run_loadtest(_with_bundle(settings), options, quiet=json_out == "-")
    _write_json(report, json_out)
    if not report["ok"]:
        raise typer.Exit(3)


Quick = Annotated[bool, typer.Option("--quick", help="Fewer and smaller rounds, under 50 s.")]


@bench.command("stream")
def bench_stream(
    *,
    load: Annotated[
        Literal["purchases", "light", "uniform"],
        typer.Option(help="The shipped purchases, 500,000 light users, or 1,000,000 alike."),
    ] = "purchases",
    reclustering: Annotated[
        Literal["on", "off"], typer.Option(help="Whether our worker reclusters meanwhile.")
    ] = "off",
    events: Annotated[
        int | None, typer.Option(min=1000, help="How many events our worker gets.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Our worker alone, for so long; light and uniform loads only."),
    ] = None,
    offered: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1,
            help="With --minutes: share of that rate at which events are followed into rankings.",
        ),
    ] = 0.5,
    forms: Annotated[
        bool,
        typer.Option(
            "--forms",
            help="The purchases as JSON, in envelopes of 50, in Avro, and compressed, instead.",
        ),
    ] = False,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Events a second from Kafka into rolling sequences, beside Faust and Quix Streams."""
    if minutes and (quick or events):
        raise SettingsError("--minutes: leave out --quick and --events, or --minutes")
    if forms and (minutes or events or load != "purchases" or reclustering == "on"):
        raise SettingsError("--forms: leave out all else but --quick, --chart and --json")
    with _extra("bench"):
        from lifelong.bench import forms as bench_forms
        from lifelong.bench import stream, sustained

    def measure() -> dict[str, Any]:
        reclusters = reclustering == "on"
        if forms:
            return bench_forms.run(quick)
        if minutes:
            return sustained.run(load, minutes, offered, reclustering=reclusters)
        return stream.run(quick, load, reclustering=reclusters, events=events)

    title = "stream, forms" if forms else f"stream, {load}, reclustering {reclustering}"
    _report_bench(measure, title, chart, json_out)


@bench.command("extract")
def bench_extract(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Users a second from sequences to interests, beside scikit-learn, faiss and torch."""
    with _extra("bench"):
        from lifelong.bench import extract
    _report_bench(lambda: extract.run(quick=quick), "extract", chart, json_out)


@bench.command("store")
def bench_store(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """What stores take, in events and reads a second, and what users and events cost in bytes."""
    from lifelong.bench import store

    _report_bench(lambda: store.run(quick=quick), "store", chart, json_out)


@bench.command("backfill")
def bench_backfill(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Events a second from Parquet into an LMDB store, beside reading the file alone."""
    from lifelong.bench import backfill as job

    _report_bench(lambda: job.run(quick=quick), "backfill", chart, json_out)


@bench.command("users")
def bench_users(
    *,
    users: Annotated[
        int, typer.Option(min=1000, help="How many users the store has.")
    ] = 10_000_000,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """What ten million users cost who goes over them: listing, renewal, a worker's start, check."""
    from lifelong.bench import users as bench

    _report_bench(lambda: bench.run(users), "users", chart, json_out)


@bench.command("catalog")
def bench_catalog(
    *,
    quick: Quick = False,
    system: Annotated[
        str, typer.Option(help="Whose shipped bundle is grown: encode, sdim or twin.")
    ] = "encode",
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Ten million items: loading, lookups beside a binary search, memory that processes share."""
    from lifelong.bench import catalog

    _report_bench(lambda: catalog.run(quick=quick, system=system), "catalog", chart, json_out)


@bench.command("sdim")
def bench_sdim(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Microseconds of a user's buckets: summed anew, brought up to date, and read by candidates."""
    from lifelong.bench import sdim

    _report_bench(lambda: sdim.run(quick=quick), "sdim", chart, json_out)


@bench.command("twin")
def bench_twin(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Microseconds of a TWIN request's reading and searching, at 1,000 and 10,000 behaviors."""
    from lifelong.bench import twin

    _report_bench(lambda: twin.run(quick=quick), "twin", chart, json_out)


@bench.command("score")
def bench_score(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Microseconds of a ranking request: the three systems beside DIN-L, torch and plain graphs."""
    with _extra("bench"):
        from lifelong.bench import score
    _report_bench(lambda: score.run(quick=quick), "score", chart, json_out)


@bench.command("sampling")
def bench_sampling(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Milliseconds of a measured request (scorer.sampled), and of rankings beside it."""
    with _extra("bench"):
        from lifelong.bench import sampling
    _report_bench(lambda: sampling.run(quick=quick), "sampling", chart, json_out)


@bench.command("load")
def bench_load(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Rankings a second that come in time, offered less and more than a scorer can do."""
    with _extra("bench"):
        from lifelong.bench import load
    _report_bench(lambda: load.run(quick=quick), "load", chart, json_out)


@bench.command("client")
def bench_client(
    *,
    quick: Quick = False,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Processor time and latency of our clients, beside the same on httpx."""
    with _extra("bench"):
        from lifelong.bench import client
    _report_bench(lambda: client.run(quick=quick), "client", chart, json_out)


@bench.command("train")
def bench_train(
    *,
    quick: Quick = False,
    threads: Annotated[
        int, typer.Option(min=1, help="Of torch, on both sides; more than 1 on an idle machine.")
    ] = 1,
    peer_python: Annotated[
        Path | None,
        typer.Option(help="A Python with FuxiCTR 2.3.9; default: fetched into a cache."),
    ] = None,
    chart: Chart = None,
    json_out: JsonOut = None,
) -> None:
    """Samples a second in training, beside FuxiCTR's same models."""
    with _extra("bench"):
        from lifelong.bench import train
    run = functools.partial(train.run, quick, threads, peer_python)
    _report_bench(run, "train", chart, json_out)


def _report_bench(run: Any, title: str, chart: Path | None, json_out: str | None) -> None:
    from lifelong.bench.report import show

    _log()
    with _terminable(), _extra("bench"):
        result = run()
    if json_out != "-":
        show(title, result, chart)
    _write_json(result, json_out)


def _settings(
    config: Path | None,
    assignments: list[str] | None,
    own: Mapping[str, object] | None = None,
) -> Settings:
    """Settings with the command's own flags on top, then --set."""
    from infra.settings import load_settings

    chosen = {key: value for key, value in (own or {}).items() if value is not None}
    flags = {key: FLAGS[key] for key in chosen}
    for assignment in assignments or []:
        key, separator, value = assignment.partition("=")
        if not separator or not key:
            raise SettingsError(f"--set {assignment!r}: write KEY=VALUE, as in store.length=2000")
        chosen[key] = value
        flags[key] = f"--set {key}"
    settings = load_settings(_nested(chosen), config, flags=flags)
    _log(settings.log)
    return settings


def _of_letters(settings: Settings, source: str | None) -> Settings:
    """Settings with the dead-letter topic of a source; who has replayed what is asked as ever."""
    if source is None:
        return settings
    topic = settings.reading(source).broker.dead_letter_topic
    broker = settings.broker.model_copy(update={"dead_letter_topic": topic})
    return settings.model_copy(update={"broker": broker})


def _lines(file: Path, flag: str = "--file") -> list[str]:
    """The lines of a text file that hold something."""
    try:
        return [line for line in file.read_text().splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{flag} {file}: cannot be read: {one_line(error)}") from error


def _ids(file: Path | None, flag: str) -> tuple[str, ...]:
    """What a file lists; nothing where none is named."""
    if file is None:
        return ()
    ids = tuple(_lines(file, flag))
    if not ids:
        raise SettingsError(f"{flag} {file}: holds nothing; write one a line")
    return ids


def _toml_values(assignments: list[str] | None) -> dict[str, object]:
    """Assignments with values as TOML reads them; what is no TOML is text."""
    values: dict[str, object] = {}
    for assignment in assignments or []:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise SettingsError(f"--set {assignment!r}: write KEY=VALUE, as in training.epochs=3")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values


def _log(settings: LogSettings | None = None) -> None:
    """Log as the settings say; without any, only what needs a look."""
    from infra.settings import LogSettings
    from infra.telemetry import configure_logging

    settings = settings or LogSettings(level="WARNING")
    configure_logging(settings)
    if settings.level != "DEBUG":
        # The producer warns of each retry. What fails in the end is raised, in our words.
        logging.getLogger("streaming.files.replay").setLevel(logging.ERROR)


def _nested(flat: Mapping[str, object]) -> dict[str, Any]:
    """Values by dotted key as a tree: {"store.url": x} becomes {"store": {"url": x}}."""
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *sections, name = dotted.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
            if not isinstance(branch, dict):
                raise SettingsError(
                    f"--set {section}={branch} and {dotted} contradict each other:"
                    f" {section} is a section, set its keys one by one"
                )
        branch[name] = value
    return tree


def _with_bundle(settings: Settings) -> Settings:
    """The settings with the shipped bundle where none is named."""
    from lifelong.shipped import BUNDLE

    if settings.bundle.path is not None:
        return settings
    bundle = settings.bundle.model_copy(update={"path": BUNDLE})
    return settings.model_copy(update={"bundle": bundle})


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Tell which extra to install when a package of it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"this command needs the package {error.name}: install the extra, as in"
            f" pip install 'lifelong[{name}]' (here: make install-{name})"
        ) from error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, so that what the command started is ended too."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_json(result: Mapping[str, Any], target: str | None) -> None:
    if target is None:
        return
    text = json.dumps(result, indent=2, allow_nan=False)
    if target == "-":
        print(text)
        return
    try:
        Path(target).write_text(text + "\n")
    except OSError as error:
        raise SettingsError(
            f"--json {target}: cannot be written ({error.strerror}); name a file in a directory"
            " that exists and is writable"
        ) from error


def _fail(message: str, code: int) -> NoReturn:
    print(f"lifelong: {one_line(message, sys.maxsize)}", file=sys.stderr)
    sys.exit(code)
