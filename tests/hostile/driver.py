"""``python -m tests.hostile.driver``: throws files at a service and judges every answer, and what is left afterwards.

A file may be accepted or refused, by all doors alike and in time. Nothing else may come of it: no server error, no
dropped connection, no dead process, no memory that stays, no row without a file or file without a row.
"""

import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx2
import psutil
import typer
from rich.console import Console
from rich.table import Table

from circles.errors import ImageError
from circles.imaging import read_header
from circles.settings import Settings
from tests.hostile.corpus import HostileFile, corpus
from tests.hostile.doors import Answer, Door, opened_doors
from tests.serving import running_serve

ANSWER_S = 1.0
"""In which a file that is asked about alone is answered, unless its header honestly says that it is large."""

MEMORY_SLACK_BYTES = 512 * 2**20
"""By which a process may have grown since its first files: allocators keep what one large picture needed."""

_ALL_DOORS_PERIOD = 5  # every fifth file goes through all doors, the others through the first
_LARGE_PIXELS = 10_000_000  # decoding and detecting in more takes longer, however the picture was made
_WARM_UP_FILES = 100
_CALM_S = 60.0
_ALONE_TRIES = 5


@dataclass(frozen=True)
class Target:
    """A service to throw files at."""

    url: str
    grpc_address: str | None = None
    process_ids: Callable[[], dict[str, set[int]]] = dict
    """Of the processes that must live on, by their role; none where the service is somebody else's."""
    environment: Mapping[str, str] | None = None
    """With which its data, of this run alone, can be checked."""


@dataclass
class Findings:
    """What came of the files."""

    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    statuses: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[float, str, str]] = field(default_factory=list)
    """Seconds, door and name of all."""
    kept: dict[str, str] = field(default_factory=dict)
    """Name of the file that was accepted, by the id of its image."""
    memory_bytes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Of each process: after the first files, at most, and at the end."""
    breaches: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        """How many were thrown."""
        return sum(sum(counter.values()) for counter in self.kinds.values())


async def throw(
    files: Iterable[HostileFile],
    target: Target,
    concurrency: int = 4,
    told: Callable[[Findings], None] = lambda _: None,
    answer_s: float = ANSWER_S,
) -> Findings:
    """Throws all files, then looks at what is left.

    Args:
        told: Called after each file.
        answer_s: In which a file that is asked about alone is answered.
    """
    run = _Run(target, told, answer_s)
    async with opened_doors(target.url, target.grpc_address) as doors:
        await run.throw_all(enumerate(files), doors, concurrency)
        await run.ask_slow_ones_alone(doors)
    await run.look_at_what_is_left()
    return run.findings


class _Run:
    """One run of the driver against one service."""

    def __init__(self, target: Target, told: Callable[[Findings], None], answer_s: float) -> None:
        self.findings = Findings()
        self._answer_s = answer_s
        self._target = target
        self._told = told
        self._detection_timeout_s = float(httpx2.get(f"{target.url}/config").json()["detection_timeout_s"])
        self._slow: dict[str, bytes] = {}
        self._processes = target.process_ids()
        self._memory_at_first: dict[str, int] = {}
        self._most_memory: dict[str, int] = {}

    async def throw_all(
        self, numbered: Iterator[tuple[int, HostileFile]], doors: dict[str, Door], concurrency: int
    ) -> None:
        """Every file, so many at once."""
        turn = asyncio.Lock()

        async def next_file() -> tuple[int, HostileFile] | None:
            async with turn:  # in a thread: making a file takes time that no answer is to be blamed for
                return await asyncio.to_thread(next, numbered, None)

        async def worker() -> None:
            while (numbered_file := await next_file()) is not None:
                await self._throw(*numbered_file, doors)

        await asyncio.gather(*(worker() for _ in range(concurrency)))

    async def _throw(self, number: int, file: HostileFile, doors: dict[str, Door]) -> None:
        first, *others = doors.values()
        answers = [await first(file.content, file.name)]
        if number % _ALL_DOORS_PERIOD == 0:
            answers += [await door(file.content, file.name) for door in others]
        for answer in answers:
            self._judge(file, answer)
        verdicts = {answer.verdict for answer in answers} - {"pending", "wrong"}
        if len(verdicts) > 1:
            said = ", ".join(f"{answer.door}: {answer.status} {answer.detail[:80]}" for answer in answers)
            self.findings.breaches.append(f"{file.name}: the doors disagree: {said}")
        self.findings.kinds[file.kind][answers[0].verdict] += 1
        if self.findings.files >= _WARM_UP_FILES and not self._memory_at_first:
            self._memory_at_first = self._memory()
        if self.findings.files % 50 == 0:
            for name, size in self._memory().items():
                self._most_memory[name] = max(size, self._most_memory.get(name, 0))
        self._told(self.findings)

    def _judge(self, file: HostileFile, answer: Answer) -> None:
        found = self.findings
        found.statuses[f"{answer.door} {answer.status}"] += 1
        found.answers.append((answer.seconds, answer.door, file.name))
        if answer.image_id is not None:
            found.kept[answer.image_id] = file.name
        if answer.verdict == "wrong":
            found.breaches.append(f"{file.name}: {answer.door} answered {answer.status}: {answer.detail}")
        elif answer.seconds > self._detection_timeout_s + self._answer_s:
            found.breaches.append(f"{file.name}: {answer.door} answered after {answer.seconds:.1f} s")
        elif answer.seconds > self._answer_s:
            self._slow.setdefault(file.name, file.content)

    async def ask_slow_ones_alone(self, doors: dict[str, Door]) -> None:
        """Whether those that took long were slow themselves, or waited behind others that may be."""
        for name, content in self._slow.items():
            is_large = _claimed_pixels(content) > _LARGE_PIXELS
            limit_s = max(self._detection_timeout_s, self._answer_s) if is_large else self._answer_s
            seconds = math.inf
            for _ in range(_ALONE_TRIES):  # whatever else the machine does is not the file's fault
                seconds = min(seconds, (await doors["V1 raw"](content, name)).seconds)
                if seconds <= limit_s:
                    break
            else:
                self.findings.breaches.append(f"{name}: answered after {seconds:.1f} s, though asked about alone")

    async def look_at_what_is_left(self) -> None:
        """The service lives, has what it said that it has, and nothing else."""
        async with httpx2.AsyncClient(base_url=self._target.url, timeout=60, trust_env=False) as client:
            health = await client.get("/health")
            if health.status_code != 200:
                self.findings.breaches.append(f"/health answers {health.status_code}")
            await self._wait_for_pending(client)
            for image_id, name in self.findings.kept.items():
                objects = await client.get(f"/images/{image_id}/objects")
                if objects.status_code != 200 or objects.json()["status"] == "pending":
                    self.findings.breaches.append(f"{name}: its objects answer {objects.status_code}: {objects.text}")
                elif objects.json()["status"] == "failed":
                    await self._judge_failure(client, image_id, name)
        if self._processes != self._target.process_ids():
            self.findings.breaches.append(f"processes were {self._processes}, are {self._target.process_ids()}")
        self._judge_memory()
        if self._target.environment is not None:
            self._check_storage(self._target.environment)

    async def _wait_for_pending(self, client: httpx2.AsyncClient) -> None:
        deadline = time.monotonic() + _CALM_S
        while time.monotonic() < deadline:
            waiting = (await client.get("/images/", params={"status": "pending", "limit": 1})).json()["items"]
            if not waiting:
                return
            await asyncio.sleep(0.5)

    async def _judge_failure(self, client: httpx2.AsyncClient, image_id: str, name: str) -> None:
        """A pending picture may turn out to be broken; the detector may not stumble."""
        error = str((await client.get(f"/images/{image_id}")).json()["error"])
        if "detector failed" in error or "memory" in error:
            self.findings.breaches.append(f"{name}: {error}")

    def _memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        sizes = {}
        for role, ids in self._processes.items():
            for process_id in ids:
                try:
                    sizes[f"{role} {process_id}"] = psutil.Process(process_id).memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # found out when the processes are compared
        return sizes

    def _judge_memory(self) -> None:
        now = self._memory()
        for name, before in self._memory_at_first.items():
            after = now.get(name, 0)
            self.findings.memory_bytes[name] = (before, max(after, self._most_memory.get(name, 0)), after)
            if after - before > MEMORY_SLACK_BYTES:
                self.findings.breaches.append(f"{name} grew by {(after - before) / 2**20:.0f} MiB")

    def _check_storage(self, environment: Mapping[str, str]) -> None:
        check = subprocess.run(
            [sys.executable, "-m", "circles.storage", "check", "--deep"],
            env={**os.environ, **environment, "ORPHAN_GRACE_S": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        expected = f"{len(self.findings.kept)} images"
        if check.returncode != 0 or check.stdout.split("\n")[-2:-1] != [expected]:
            self.findings.breaches.append(
                f"storage check, {expected} expected: {check.stdout[-2000:]}{check.stderr[-500:]}"
            )


def files_in(folder: Path) -> list[HostileFile]:
    """All files below a folder, each of the kind that its folder is named."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [HostileFile(str(path.relative_to(folder)), path.parent.name, path.read_bytes()) for path in paths]


def _claimed_pixels(content: bytes) -> int:
    try:
        header = read_header(content, Settings.model_fields["max_image_pixels"].default)
    except ImageError:
        return 0
    return header.width * header.height


def print_findings(found: Findings, console: Console) -> None:
    """Tables of what came of the files, and the breaches."""
    kinds = Table("kind", "files", "accepted", "refused", "pending", "wrong", title=f"{found.files} files")
    for kind, verdicts in sorted(found.kinds.items()):
        counts = [verdicts[verdict] for verdict in ("accepted", "refused", "pending", "wrong")]
        kinds.add_row(kind, *map(str, (sum(counts), *counts)))
    console.print(kinds)
    statuses = Table("door and status", "answers", title=f"{found.statuses.total()} answers")
    for status, count in sorted(found.statuses.items()):
        statuses.add_row(status, str(count))
    console.print(statuses)
    seconds = [each[0] for each in found.answers]
    slowest = Table("s", "door", "slowest files", title=f"median {statistics.median(seconds) * 1000:.0f} ms")
    for duration, door, name in sorted(found.answers, reverse=True)[:10]:
        slowest.add_row(f"{duration:.2f}", door, name)
    console.print(slowest)
    memory = Table("process", "MiB after the first files", "at most", "at the end")
    for process, sizes in found.memory_bytes.items():
        memory.add_row(process, *(f"{size / 2**20:.0f}" for size in sizes))
    console.print(memory)
    slow = sum(duration > ANSWER_S for duration in seconds)
    console.print(f"{slow} answers after more than {ANSWER_S:g} s; {len(found.kept)} pictures kept")
    for breach in found.breaches:
        console.print(f"BREACH {breach}", markup=False, highlight=False)
    console.print(f"{len(found.breaches)} breaches")


def main(
    files: Annotated[int, typer.Option(help="How many files to make.", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="That they are made from.", min=0)] = 1,
    folder: Annotated[Path | None, typer.Option(help="Files to throw instead of made ones.", exists=True)] = None,
    url: Annotated[str | None, typer.Option(help="A service that runs already; else one is started.")] = None,
    grpc: Annotated[str | None, typer.Option(help="Address of that service's gRPC.")] = None,
    concurrency: Annotated[int, typer.Option(help="Files thrown at once.", min=1, max=32)] = 4,
) -> None:
    """Throw hostile files at a service; fails when one did harm."""
    console = Console(soft_wrap=True)
    thrown: Iterable[HostileFile] = corpus(seed, files) if folder is None else files_in(folder)

    def told(found: Findings) -> None:
        if found.files % 500 == 0:
            console.print(f"{found.files} files, {len(found.breaches)} breaches")

    if url is not None:
        found = asyncio.run(throw(thrown, Target(url, grpc), concurrency, told))
    else:
        with tempfile.TemporaryDirectory() as data, running_serve(Path(data), DETECTOR_MAX_REPLICAS="1") as service:
            target = Target(service.url, service.grpc_address, service.replica_pids, service.environment)
            found = asyncio.run(throw(thrown, target, concurrency, told))
    print_findings(found, console)
    raise typer.Exit(1 if found.breaches else 0)


if __name__ == "__main__":
    typer.run(main)
