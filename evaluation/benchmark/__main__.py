"""``python -m evaluation.benchmark``: this application beside other ways to serve its detector, on this machine."""

import json
import os
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from circles.detectors.encoded import DetectionOutcome
from circles.settings import Settings
from evaluation.benchmark.contestants import CORES, contestants
from evaluation.benchmark.environments import fresh_folder
from evaluation.benchmark.machine import machine, state
from evaluation.benchmark.measurement import Plan
from evaluation.benchmark.pictures import drawn_pictures, pictures_in
from evaluation.benchmark.programs.bare import bare_detector
from evaluation.benchmark.report import summarise, tables, write_report
from evaluation.benchmark.rounds import LIMIT, run_rounds
from evaluation.benchmark.rows import measure_rows
from evaluation.benchmark.scaling import measure_burst, measure_replicas, measure_wake, plot_burst
from evaluation.benchmark.sizing import Costs, size
from evaluation.benchmark.stages import STAGES, NoTimingsError, measure_stages, network_part
from evaluation.benchmark.summary import least_ratios
from serve_app.processes import ROOT

cli = typer.Typer(add_completion=False, help=__doc__)
console = Console(soft_wrap=True)

_OUTPUT = ROOT / "evaluation" / "output" / "bench"
_PICTURES = 8
_CLIENTS_PER_CORE = 8
_QUICK_ROUNDS, _QUICK_SECONDS = 1, 4.0
# Far below what is ever measured, also on a busy machine: a quick run says whether something broke, not how fast it is.
COLLAPSED = {"ours_to_limit": 0.3, "ours_to_plain": 0.4, "ours_to_template": 0.6, "ours_to_owlvit": 3.0}


@cli.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="One short round; fail when a ratio collapsed.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each is measured. Default: 5.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Of each measurement, at least. Default: 10.")] = None,
    only: Annotated[str, typer.Option(help="Comma-separated names; all when empty.")] = "",
    output: Annotated[Path, typer.Option(help="Folder of bench.json, bench.svg and bench.md.")] = _OUTPUT,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder whose first eight JPEG files up to 200 kB are asked for.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the contestants' order and of arrivals.")] = 0,
) -> None:
    """Measure all ways to serve the detector, in shuffled rounds, and write a report."""
    if context.invoked_subcommand is not None:
        return
    count = rounds or (_QUICK_ROUNDS if quick else 5)
    chosen_seconds = seconds or (_QUICK_SECONDS if quick else 10.0)
    everybody = {contestant.name: contestant for contestant in contestants()}
    names = [name.strip() for name in only.split(",") if name.strip()] or [LIMIT, *everybody]
    unknown = set(names) - {LIMIT, *everybody}
    if unknown:
        raise typer.BadParameter(f"--only: {', '.join(sorted(unknown))} is none of {', '.join([LIMIT, *everybody])}")
    about = {**machine(), **state()}
    plan = _plan(pictures, chosen_seconds, seed, has_latencies=not quick)
    taking_part = [everybody[name] for name in everybody if name in names]
    found = run_rounds(taking_part, plan, count, seed, _say, has_limit=LIMIT in names)
    settings: dict[str, object] = {
        "rounds": count,
        "seconds": plan.seconds,
        "warm_up_s": plan.warm_up_s,
        "clients": plan.clients,
        "seed": seed,
        "detector": Settings().loaded_detector,
        "pictures": str(pictures) if pictures else "drawn scenes of 512 x 384 px, seeds 0 to 7",
        "picture_bytes": [len(picture) for picture in plan.pictures],
        "objects": plan.counts,
    }
    summary = summarise(found, {name: each.title for name, each in everybody.items()}, settings, about)
    write_report(output, summary)
    console.print(tables(summary))
    console.print(f"report: {output / 'bench.json'}, {output / 'bench.svg'}", highlight=False)
    problems = least_ratios(summary["ratios"], COLLAPSED) if quick else []
    if "ours" in found.skipped:
        problems.append(f"ours could not be measured: {found.skipped['ours']}")
    for problem in problems:
        console.print(f"[red]error:[/] {escape(problem)}")
    if problems:
        raise typer.Exit(1)


@cli.command()
def stages(
    count: Annotated[int, typer.Option(min=8, help="Pictures to ask for.")] = 200,
    pictures: Annotated[Path | None, typer.Option(help="As for the benchmark itself.")] = None,
) -> None:
    """Start this application alone, and say where the time of a picture goes, by its own timings."""
    files = _pictures(pictures)
    ours = next(each for each in contestants() if each.name == "ours")
    os.environ["SERVER_TIMING"] = "1"
    with fresh_folder() as folder:
        try:
            target = ours.start(folder)
            found = measure_stages(target.url, files, count)
        except NoTimingsError as error:
            raise typer.BadParameter(str(error)) from error
        finally:
            ours.stop()
    in_networks = network_part(files)
    table = Table("stage", "ms", "part", title=f"one client, means of {count} pictures")
    for name in STAGES:
        told_ms = found.stages_ms.get(name, 0.0)
        table.add_row(name, f"{told_ms:.2f}", f"{told_ms / found.service_ms:.1%}")
        if name == "detect":
            table.add_row("  networks", f"{told_ms * in_networks:.2f}", "")
            table.add_row("  peaks, rims, views", f"{told_ms * (1 - in_networks):.2f}", "")
    table.add_row("all of these", f"{found.told_part * found.service_ms:.2f}", f"{found.told_part:.1%}")
    table.add_row("the service's total", f"{found.service_ms:.2f}", "100.0%")
    table.add_row("proxy and network", f"{found.client_ms - found.service_ms:.2f}", "")
    table.add_row("file, beside detection", f"{found.stages_ms.get('file-beside', 0.0):.2f}", "")
    console.print(table)


@cli.command()
def replicas(
    counts: Annotated[list[int] | None, typer.Argument(help="Default: 1 2 4 8 16 32 64.")] = None,
    wait_s: Annotated[float, typer.Option(min=0.01, help="That the detector takes for a picture.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement.")] = 20.0,
    nodes: Annotated[int, typer.Option(min=1, help="Ray nodes, all on this machine, that share the replicas.")] = 1,
) -> None:
    """Say what more and more replicas do whose detector only waits: what serving itself can do."""
    table = Table("replicas", "pictures/s", "of the ideal", "p50, s", "ready after, s", title=f"{wait_s:g} s a picture")
    for count in counts or [1, 2, 4, 8, 16, 32, 64]:
        _say(f"{count} replicas")
        with fresh_folder() as folder:
            found = measure_replicas(drawn_pictures(_PICTURES), count, wait_s, seconds, folder, nodes)
        part = found.pictures_per_s / found.ideal_per_s
        _say(f"    {found.pictures_per_s:.1f} pictures/s, {part:.0%} of the ideal; ready after {found.start_s:.0f} s")
        numbers = (f"{found.pictures_per_s:.1f}", f"{part:.0%}", f"{found.p50_s:.2f}", f"{found.start_s:.0f}")
        table.add_row(str(count), *numbers)
    console.print(table)


@cli.command()
def burst(
    most: Annotated[int, typer.Option(min=2, help="Replicas, of which one suffices at first.")] = 8,
    wait_s: Annotated[float, typer.Option(min=0.01, help="That the detector takes for a picture.")] = 0.5,
    calm_s: Annotated[float, typer.Option(min=1, help="Before the burst, and after it.")] = 30.0,
    burst_s: Annotated[float, typer.Option(min=1, help="Of the burst.")] = 60.0,
    steady: Annotated[bool, typer.Option("--steady", help="It comes little by little.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of burst.svg.")] = _OUTPUT,
) -> None:
    """Draw what twenty times as many requests do to latencies, and how replicas come and go."""
    with fresh_folder() as folder:
        found = measure_burst(drawn_pictures(_PICTURES), most, wait_s, calm_s, burst_s, folder, is_steady=steady)
    output.mkdir(parents=True, exist_ok=True)
    plot_burst(found, output / "burst.svg")
    begin, end = found.burst
    largest = max(count for _, count in found.replicas)
    _say(f"{len(found.answers)} answers, {found.lost} requests without one")
    for name, in_burst in (("burst", True), ("before and after", False)):
        p50, p99 = np.quantile(found.latencies_s(in_burst=in_burst), [0.5, 0.99])
        _say(f"latency, {name}: p50 {p50:.2f} s, p99 {p99:.2f} s")
    _say(f"a second replica {_after(found.first_at_s(lambda count: count > 1, begin))} the burst began")
    _say(f"all {largest} of them {_after(found.first_at_s(lambda count: count == largest, begin))} it")
    _say(f"one alone {_after(found.first_at_s(lambda count: count == 1, end))} it ended")
    console.print(f"plot: {output / 'burst.svg'}", highlight=False)


@cli.command()
def wake(times: Annotated[int, typer.Option(min=1, help="How often, each time from a fresh start.")] = 3) -> None:
    """Say what the first upload takes while no detector replica runs."""
    for _ in range(times):
        with fresh_folder() as folder:
            found = measure_wake(drawn_pictures(2), folder)
        _say(f"first answer ({found.first_status}) after {found.first_s:.2f} s, the next after {found.next_s:.2f} s")


@cli.command()
def rows(
    sizes: Annotated[list[int] | None, typer.Argument(help="Images. Default: 1000 100000 1000000.")] = None,
    url: Annotated[str | None, typer.Option(help="An empty database; default: a new SQLite file.")] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Of each question.")] = 200,
) -> None:
    """Say what the database's answers take at more and more rows."""
    with fresh_folder() as folder:
        database_url = url or f"sqlite:///{folder}/rows.sqlite3"
        with console.status("filling") as status:
            wanted = sorted(sizes or [1000, 100_000, 1_000_000])
            times = measure_rows(database_url, wanted, repeats, lambda count: status.update(f"{count:,} images"))
    names = ("find", "newest page", "old page", "claim", "add", "delete")
    table = Table("images", *(f"{name}, ms" for name in names), title="medians, one caller")
    for each in times:
        row = (each.find_ms, each.newest_page_ms, each.old_page_ms, each.claim_ms, each.add_ms, each.delete_ms)
        table.add_row(f"{each.images:,}", *(f"{number:.2f}" for number in row))
    console.print(table)


@cli.command()
def sizing(
    rates: Annotated[list[float], typer.Argument(help="Pictures a second.")],
    measured: Annotated[Path, typer.Option(help="bench.json of a run with limit and ours.")] = _OUTPUT / "bench.json",
    utilisation: Annotated[float, typer.Option(min=0.1, max=1, help="Part of each core that is to be busy.")] = 0.6,
    pod_cores: Annotated[int, typer.Option(min=1, help="Cores of one pod.")] = 8,
    core_price: Annotated[float, typer.Option(min=0, help="Of a core for an hour, in any currency.")] = 0.05,
) -> None:
    """Say what rates of pictures take, by what a run has measured."""
    summary = json.loads(measured.read_text(encoding="utf-8"))
    if summary["overhead_cpu_ms"] is None:
        raise typer.BadParameter(f"{measured} has not both limit and ours", param_hint="--measured")
    costs = Costs(summary["limit"]["cpu_ms"], max(0.0, summary["overhead_cpu_ms"]))
    picture_bytes = mean(summary["settings"]["picture_bytes"])
    console.print(
        f"{costs.detecting_ms:.1f} ms of a core to detect in a picture, {costs.serving_ms:.1f} ms for all else; "
        f"cores {utilisation:.0%} busy, {core_price:g} for an hour of one"
    )
    names = ("detector replicas", "ingress replicas", "cores", f"pods of {pod_cores}")
    table = Table("pictures/s", *names, "Gbit/s", "cores, a month")
    for rate in rates:
        found = size(rate, costs, picture_bytes, utilisation, pod_cores)
        numbers = (found.detector_replicas, found.ingress_replicas, found.cores, found.pods)
        rest = (f"{found.network_bytes_per_s * 8e-9:.3g}", f"{found.monthly_price(core_price):,.0f}")
        table.add_row(f"{rate:,g}", *(f"{number:,}" for number in numbers), *rest)
    console.print(table)


def _plan(folder: Path | None, seconds: float, seed: int, *, has_latencies: bool) -> Plan:
    files = _pictures(folder)
    return Plan(
        pictures=files,
        counts=tuple(_count(outcome) for outcome in bare_detector().detect(files)),
        clients=_CLIENTS_PER_CORE * CORES,
        seconds=seconds,
        warm_up_s=max(3.0, seconds / 2),
        seed=seed,
        has_latencies=has_latencies,
    )


def _pictures(folder: Path | None) -> tuple[bytes, ...]:
    try:
        return drawn_pictures(_PICTURES) if folder is None else pictures_in(folder, _PICTURES)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"--pictures: {error}") from error


def _count(outcome: DetectionOutcome) -> int:
    """Objects that a client is told of by default."""
    if isinstance(outcome, Exception):
        raise typer.BadParameter(f"--pictures: {outcome}") from outcome
    return len(outcome.detections)


def _after(seconds: float | None) -> str:
    return "not after" if seconds is None else f"{seconds:.1f} s after"


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


if __name__ == "__main__":
    cli()
