"""``python -m tests.chaos``: takes the application apart while clients upload, and judges what they were told.

Every acknowledged picture must be there afterwards, whole and looked at, once, with nothing beside it.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import stamina.instrumentation
import typer
from rich.console import Console

from tests.chaos.driver import opened_run


def main(
    kills: Annotated[int, typer.Option(help="Processes to kill, one after the other.", min=0)] = 1000,
    power_cuts: Annotated[int, typer.Option(help="How often everything is killed at once.", min=0)] = 50,
    seed: Annotated[int, typer.Option(help="Of what is chosen by chance.", min=0)] = 1,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
    folder: Annotated[Path | None, typer.Option(help="For data and logs, kept; else a temporary one.")] = None,
) -> None:
    """Kill the application's processes under uploads; fails when anything promised was broken."""
    console = Console(soft_wrap=True)
    stamina.instrumentation.set_on_retry_hooks([])  # that clients try again is counted, not told one by one
    with tempfile.TemporaryDirectory() as temporary, opened_run(folder or Path(temporary), seed, console.print) as run:
        if kills:
            run.kill(kills)
        if power_cuts:
            run.cut_power(power_cuts)
    found = run.findings
    found.print(console)
    if json_path is not None:
        json_path.write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(1 if found.breaches else 0)


if __name__ == "__main__":
    typer.run(main)
