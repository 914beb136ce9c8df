"""The comparison of the ways to the detector."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.serve
@pytest.mark.control
@pytest.mark.timeout(300)
def test_ways_are_compared() -> None:
    command = [sys.executable, "-m", "serve_app.protocols", "docs/coins.jpg", "--rounds", "2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate(timeout=200)
        finally:
            process.send_signal(signal.SIGINT)  # where it has not ended: it stops its Serve, which a kill would leave
    assert process.returncode == 0, errors[-3000:]
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    sent = {row[0]: int(row[1].replace(",", "")) for row in rows[1:]}
    size = (ROOT / "docs" / "coins.jpg").stat().st_size
    in_text = {name for name, count in sent.items() if count >= size * 4 / 3}
    assert in_text == {"V1, base64 in JSON", "V2, base64 in JSON"}
    assert {name for name, count in sent.items() if size < count < size + 1000} == sent.keys() - in_text
    assert len(sent) == 6
    assert all(float(row[3]) > 0 and float(row[5]) >= 1 for row in rows[1:])
