"""The benchmark's report: ``bench.json``, a plot, and tables for the terminal and for documentation."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table

from evaluation.benchmark.summary import Rounds, limit_medians, medians, overheads_ms, ratios

_OURS, _OTHERS, _LIMIT = "#2a7f4f", "#8a8f98", "#c93434"
_MB = 1e6
_LEAST_SHOWN = 0.1  # ms, of a program
_COLUMNS = (
    "pictures/s",
    "to limit",
    "one client, ms",
    "at 50 %: p50 / p99",
    "at 80 %: p50 / p99",
    "CPU ms",
    "beyond limit",
    "kB by read, write",
    "kB over loopback",
    "resident MB",
)
mpl.rcParams["svg.hashsalt"] = "charts"  # the same run gives the same bytes


def summarise(
    rounds: Rounds, titles: dict[str, str], settings: dict[str, object], machine: dict[str, object]
) -> dict[str, Any]:
    """All numbers, as they stand in ``bench.json``."""
    summary: dict[str, Any] = {
        **machine,
        "settings": settings,
        "limit": limit_medians(rounds.limits) if rounds.limits else None,
        "contestants": {name: {"title": titles[name], **numbers} for name, numbers in _best_first(medians(rounds))},
        "ratios": ratios(rounds),
        "overheads_cpu_ms": overheads_ms(rounds),
        "skipped": rounds.skipped,
        "rounds": {
            "limit": [asdict(each) for each in rounds.limits],
            "contestants": [asdict(each) for each in rounds.measurements],
        },
    }
    overheads = summary["overheads_cpu_ms"]
    ours = summary["contestants"].get("ours", {})
    return {
        "ratios": summary.pop("ratios"),
        "overhead_cpu_ms": overheads.get("ours"),
        "overhead_cpu_ms_template": overheads.get("template"),
        "p50_one_client_ms": ours.get("p50_one_client_ms"),
        "bare_ms": summary["limit"] and summary["limit"]["bare_ms"],
        **summary,
    }


def write_report(folder: Path, summary: dict[str, Any]) -> None:
    """Writes ``bench.json``, ``bench.svg`` and ``bench.md`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(summary), encoding="utf-8")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _plot_rates(left, summary)
    _plot_costs(middle, summary)
    _plot_latencies(right, summary)
    figure.savefig(folder / "bench.svg", metadata={"Date": None})


def tables(summary: dict[str, Any]) -> RenderableType:
    """The numbers for people."""
    speed = Table("", "pictures/s", "to limit", "ours is", title="at saturation: median of the rounds")
    latency = Table("p50 / p99, ms", "one client (p50)", "at 50 %", "at 80 %", "saturated (p50)")
    cost = Table(
        "a picture",
        "CPU ms",
        "beyond limit",
        "busiest process",
        "idle, cores",
        "generator's ms",
        "kB by read, write",
        "kB over loopback",
        "resident MB",
    )
    if summary["limit"]:
        limit = summary["limit"]
        speed.add_row("limit", f"{limit['pictures_per_s']:.1f}", "1.00", "")
        latency.add_row("bare detector", f"{limit['bare_ms']:.1f}", "", "", "")
        cost.add_row("limit", f"{limit['cpu_ms']:.1f}", "", "", "", "", "", "", f"{limit['resident_bytes'] / _MB:.0f}")
    for name, numbers in summary["contestants"].items():
        to_limit = summary["ratios"].get(f"{name}_to_limit")
        ours_to = summary["ratios"].get(f"ours_to_{name}")
        overhead = summary["overheads_cpu_ms"].get(name)
        speed.add_row(name, f"{numbers['pictures_per_s']:.1f}", _shown(to_limit), _shown(ours_to, " x"))
        latency.add_row(
            name,
            f"{numbers['p50_one_client_ms']:.1f}",
            *(_quantiles(numbers["at_part"].get(part)) for part in ("0.5", "0.8")),
            f"{numbers['p50_saturated_ms']:.0f}",
        )
        cost.add_row(
            name,
            f"{numbers['cpu_ms']:.1f}",
            _shown(overhead),
            f"{numbers['busiest_part']:.0%}",
            f"{numbers['idle_cores']:.2f}",
            f"{numbers['generator_cpu_ms']:.1f}",
            f"{numbers['io_bytes'] / 1000:.0f}",
            f"{numbers['loopback_bytes'] / 1000:.0f}",
            f"{numbers['resident_bytes'] / _MB:.0f}",
        )
    skipped = (f"{name} is left out: {why}" for name, why in summary["skipped"].items())
    programs = Table("of ours", "CPU ms a picture", "idle, ms a second")
    for row in _programs(summary):
        programs.add_row(*row)
    return Group(speed, latency, cost, *([programs] if programs.rows else []), *skipped)


def markdown(summary: dict[str, Any]) -> str:
    """One table for documentation, with what it was measured on."""
    lines = [
        f"| | {' | '.join(_COLUMNS)} |",
        f"|{(1 + len(_COLUMNS)) * '---|'}",
    ]
    if summary["limit"]:
        limit = summary["limit"]
        lines.append(
            f"| `limit` | {limit['pictures_per_s']:.1f} | 1 | {limit['bare_ms']:.1f} | | "
            f"| {limit['cpu_ms']:.1f} | | | | {limit['resident_bytes'] / _MB:.0f} |"
        )
    for name, numbers in summary["contestants"].items():
        cells = (
            f"`{name}`",
            f"{numbers['pictures_per_s']:.1f}",
            _shown(summary["ratios"].get(f"{name}_to_limit")),
            f"{numbers['p50_one_client_ms']:.1f}",
            *(_quantiles(numbers["at_part"].get(part)) for part in ("0.5", "0.8")),
            f"{numbers['cpu_ms']:.1f}",
            _shown(summary["overheads_cpu_ms"].get(name)),
            f"{numbers['io_bytes'] / 1000:.0f}",
            f"{numbers['loopback_bytes'] / 1000:.0f}",
            f"{numbers['resident_bytes'] / _MB:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| `{name}` | left out |" for name in summary["skipped"] if name not in summary["contestants"]]
    settings = summary["settings"]
    where = f"{summary.get('hardware')}; commit {str(summary.get('commit'))[:10]}"
    how = f"rounds: {settings.get('rounds')}; clients: {settings.get('clients')}; {settings.get('pictures')}"
    lines += ["", f"{where}; {how}.", ""]
    if programs := _programs(summary):
        lines += ["| program of `ours` | CPU ms a picture | idle, ms a second |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in programs] + [""]
    return "\n".join(lines)


def _best_first(found: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(found.items(), key=lambda item: item[1]["pictures_per_s"], reverse=True)


def _programs(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What each program of ours takes, the largest first, those that hardly take anything together."""
    ours = summary["contestants"].get("ours")
    if ours is None:
        return []
    at_work, idle = ours["cpu_ms_by_program"], ours["idle_cores_by_program"]
    found = {name: (at_work.get(name, 0.0), 1000 * idle.get(name, 0.0)) for name in {**at_work, **idle}}
    small = [numbers for numbers in found.values() if numbers[0] < _LEAST_SHOWN]
    rows = sorted(((*numbers, name) for name, numbers in found.items() if numbers[0] >= _LEAST_SHOWN), reverse=True)
    if small:
        rows.append((sum(work for work, _ in small), sum(idle for _, idle in small), "others"))
    return [(name, f"{work_ms:.1f}", f"{idle_ms:.1f}") for work_ms, idle_ms, name in rows]


def _shown(number: float | None, unit: str = "") -> str:
    return "" if number is None else f"{number:.2f}{unit}"


def _quantiles(values: dict[str, float] | None) -> str:
    return "" if values is None else f"{values['p50_ms']:.0f} / {values['p99_ms']:.0f}"


def _plot_rates(axes: Axes, summary: dict[str, Any]) -> None:
    """Every round a point, the median a bar."""
    names = list(summary["contestants"])
    _bars(axes, names, [summary["contestants"][name]["pictures_per_s"] for name in names])
    for each in summary["rounds"]["contestants"]:
        axes.plot(each["pictures_per_s"], names.index(each["contestant"]), "k.", markersize=4)
    if summary["limit"]:
        axes.axvline(summary["limit"]["pictures_per_s"], color=_LIMIT, linestyle=":", label="limit")
        _legend_above(axes)
    axes.set(xlabel="pictures/s at saturation")


def _plot_costs(axes: Axes, summary: dict[str, Any]) -> None:
    names = list(summary["contestants"])
    _bars(axes, names, [summary["contestants"][name]["cpu_ms"] for name in names])
    if summary["limit"]:
        axes.axvline(summary["limit"]["cpu_ms"], color=_LIMIT, linestyle=":")
    axes.set(xlabel="CPU ms a picture", xscale="log")
    axes.set_yticklabels([])


def _plot_latencies(axes: Axes, summary: dict[str, Any]) -> None:
    """From p50 to p99, at each part of saturation."""
    names = list(summary["contestants"])
    for row, name in enumerate(names):
        numbers = summary["contestants"][name]
        for offset, (part, values) in zip((-0.15, 0.15), numbers["at_part"].items(), strict=False):
            color = _OURS if part == "0.5" else _LIMIT
            label = f"at {float(part):.0%}: p50 to p99" if row == 0 else None
            axes.plot([values["p50_ms"], values["p99_ms"]], [row + offset] * 2, "|-", color=color, label=label)
    axes.set(
        xlabel="latency, ms", xscale="log", yticks=range(len(names)), yticklabels=[], ylim=(len(names) - 0.5, -0.5)
    )
    axes.spines[["top", "right"]].set_visible(False)
    if any(summary["contestants"][name]["at_part"] for name in names):
        _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small")


def _bars(axes: Axes, names: list[str], values: list[float]) -> None:
    colors = [_OURS if name.startswith("ours") else _OTHERS for name in names]
    axes.barh(range(len(names)), values, color=colors)
    axes.set(yticks=range(len(names)), yticklabels=names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
