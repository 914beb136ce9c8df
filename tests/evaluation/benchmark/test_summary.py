"""Medians and ratios, of rounds made up here."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluation.benchmark.limit import Limit
from evaluation.benchmark.measurement import Measurement
from evaluation.benchmark.report import summarise, tables, write_report
from evaluation.benchmark.summary import LimitRound, Rounds, least_ratios, medians, overheads_ms, ratios

TITLES = {"ours": "this", "plain": "that", "template": "the other"}


def measurement(name: str, number: int, pictures_per_s: float, cpu_ms: float = 50.0) -> Measurement:
    at_part = {
        part: {"rate": pictures_per_s / 2, "p50_ms": 40.0 + number, "p99_ms": 90.0, "sent_late_ms": 1.0}
        for part in ("0.5", "0.8")
    }
    return Measurement(
        contestant=name,
        round=number,
        pictures_per_s=pictures_per_s,
        p50_saturated_ms=300.0,
        cpu_ms=cpu_ms,
        cpu_ms_by_program={"Ingress": cpu_ms - 40, "Detector": 40.0 - number, "raylet": 0.05, "gcs_server": 0.02},
        busiest_part=0.5 + 0.1 * number,
        generator_cpu_ms=1.0,
        io_bytes=100_000.0,
        loopback_bytes=50_000.0,
        resident_bytes=10**9,
        p50_one_client_ms=44.0,
        idle_cores=0.1,
        idle_cores_by_program={"raylet": 0.07, "gcs_server": 0.03},
        at_part=at_part,
    )


def limit(number: int, pictures_per_s: float) -> LimitRound:
    return LimitRound(number, Limit(pictures_per_s, cpu_ms=40.0, resident_bytes=10**8, call_ms=40.0), 40.0, 1)


@pytest.fixture
def rounds() -> Rounds:
    """Three rounds, in the second of which the machine was half as fast; the last template did not take part in."""
    return Rounds(
        limits=(limit(0, 50.0), limit(1, 25.0), limit(2, 50.0)),
        measurements=(
            measurement("ours", 0, 40.0),
            measurement("plain", 0, 50.0, cpu_ms=42.0),
            measurement("template", 0, 20.0, cpu_ms=60.0),
            measurement("plain", 1, 25.0, cpu_ms=42.0),
            measurement("ours", 1, 20.0, cpu_ms=52.0),
            measurement("template", 1, 10.0, cpu_ms=62.0),
            measurement("ours", 2, 45.0, cpu_ms=51.0),
            measurement("plain", 2, 45.0, cpu_ms=43.0),
        ),
        skipped={"litserve": "not to be had"},
    )


def test_ratios_are_those_within_a_round(rounds: Rounds) -> None:
    """So a slow round weighs as much as the others."""
    found = ratios(rounds)
    assert found["ours_to_limit"] == pytest.approx(0.8)
    assert found["plain_to_limit"] == pytest.approx(1.0)
    assert found["ours_to_limit_left"] == pytest.approx(40 / 49)  # its 40 ms a second are one picture of the limit
    assert found["ours_to_plain"] == pytest.approx(0.8)
    assert found["ours_to_template"] == pytest.approx(2.0)
    assert found["ours_p50_one_client_to_bare"] == pytest.approx(1.1)
    assert "ours_to_ours" not in found


def test_overhead_is_processor_time_beyond_the_limit(rounds: Rounds) -> None:
    assert overheads_ms(rounds) == pytest.approx({"ours": 11.0, "plain": 2.0, "template": 21.0})


def test_numbers_are_medians_over_rounds(rounds: Rounds) -> None:
    ours = medians(rounds)["ours"]
    assert ours["pictures_per_s"] == pytest.approx(40.0)
    assert ours["busiest_part"] == pytest.approx(0.6)
    assert ours["at_part"] == {
        part: {"rate": pytest.approx(20.0), "p50_ms": 41.0, "p99_ms": 90.0, "sent_late_ms": 1.0}
        for part in ("0.5", "0.8")
    }


def test_without_the_limit_nothing_is_compared_with_it(rounds: Rounds) -> None:
    alone = Rounds((), rounds.measurements, {})
    assert ratios(alone).keys() == {"ours_to_plain", "ours_to_template"}
    assert overheads_ms(alone) == {}
    summary = summarise(alone, TITLES, {}, {})
    assert summary["overhead_cpu_ms"] is summary["bare_ms"] is None


def test_a_run_that_was_stopped_compares_what_it_has() -> None:
    found = Rounds((limit(0, 50.0),), (measurement("ours", 0, 40.0), measurement("plain", 1, 25.0)), {})
    assert ratios(found).keys() == {"ours_to_limit", "ours_to_limit_left", "ours_p50_one_client_to_bare"}
    assert overheads_ms(found).keys() == {"ours"}
    tables(summarise(found, TITLES, {}, {}))


def test_only_measured_ratios_are_judged() -> None:
    bounds = {"ours_to_limit": 0.5, "ours_to_plain": 0.5, "ours_to_template": 1.0}
    problems = least_ratios({"ours_to_limit": 0.49, "ours_to_plain": 0.5}, bounds)
    assert problems == ["ours_to_limit is 0.49, and at least 0.5 is wanted"]


def test_the_report_has_the_numbers_that_others_rely_on(rounds: Rounds, tmp_path: Path) -> None:
    summary = summarise(rounds, TITLES, {"clients": 16}, {"cores": 2, "commit": "0123"})
    write_report(tmp_path / "new", summary)
    read: dict[str, Any] = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert read["ratios"]["ours_to_limit"] == pytest.approx(0.8)
    assert read["overhead_cpu_ms"] == pytest.approx(11.0)
    assert read["overhead_cpu_ms_template"] == pytest.approx(21.0)
    assert read["p50_one_client_ms"] == pytest.approx(44.0)
    assert read["bare_ms"] == pytest.approx(40.0)
    assert (read["cores"], read["commit"], read["settings"]) == (2, "0123", {"clients": 16})
    assert list(read["contestants"]) == ["plain", "ours", "template"]  # best first
    assert read["contestants"]["plain"]["title"] == "that"
    assert read["contestants"]["template"]["busiest_part"] == pytest.approx(0.55)
    assert read["rounds"]["contestants"][3]["busiest_part"] == pytest.approx(0.6)
    assert len(read["rounds"]["contestants"]) == 8
    assert len(read["rounds"]["limit"]) == 3
    assert (tmp_path / "new" / "bench.svg").read_text().count("<svg") == 1
    rows = (tmp_path / "new" / "bench.md").read_text().splitlines()
    assert len({row.count("|") for row in rows[:5]}) == 1
    assert rows[4].startswith("| `ours` | 40.0 | 0.80 | 44.0 | 41 / 90 |")
    assert rows[-3:] == ["| Detector | 39.0 | 0.0 |", "| Ingress | 11.0 | 0.0 |", "| others | 0.1 | 100.0 |"]


def test_the_tables_name_everybody_and_who_is_left_out(rounds: Rounds) -> None:
    console = Console(width=160, record=True)
    with console.capture() as capture:
        console.print(tables(summarise(rounds, TITLES, {}, {})))
    shown = capture.get()
    for expected in ("limit", "ours", "plain", "template", "litserve is left out: not to be had", "41 / 90", "60%"):
        assert expected in shown
