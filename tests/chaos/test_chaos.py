"""The driver's short form: 50 processes killed one after the other, then the power cut three times."""

from pathlib import Path

import pytest

from tests.chaos.driver import opened_run
from tests.chaos.kills import kinds_present

pytestmark = [pytest.mark.serve, pytest.mark.control, pytest.mark.timeout(1800)]

PATIENCE_S = 120.0
"""Seconds are judged by the driver, on a machine that does nothing else."""

KINDS = {"detector replica", "ingress replica", "proxy (HAProxy)", "proxy's manager", "fallback proxy", "controller"}
"""That are there at all times; a worker beside them only now and then."""


def test_what_was_acknowledged_outlives_kills_and_power_cuts(tmp_path: Path) -> None:
    said: list[str] = []
    with opened_run(tmp_path, seed=7, told=said.append, within_s=PATIENCE_S) as run:
        assert kinds_present(run.service).keys() >= KINDS
        run.kill(50)
        run.cut_power(3)
    found = run.findings
    assert not found.breaches, "\n".join(found.breaches + said)
    assert (len(found.kills), len(found.power_cuts_s)) == (50, 3)
    assert {kill.kind for kill in found.kills} >= KINDS
    for told in found.told.values():
        assert not told.failures
        assert len(told.acknowledged) > 50
        assert 0 < told.availability < 1  # the faults were felt, by who does not try again
