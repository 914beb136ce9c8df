"""The driver: kills and power cuts under uploads, then calm, then the question what is left."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from serve_app.local import Ports
from serve_app.processes import free_port
from tests.chaos.findings import Findings
from tests.chaos.kills import (
    Kill,
    NotBackError,
    cut_power,
    kill_one_after_the_other,
    wait_for_acknowledgement,
    wait_for_serves_haproxy,
)
from tests.chaos.uploads import Told, Uploads
from tests.chaos.verify import breaches_in
from tests.serving import RunningServe, running_serve

PROMISED_S = 30.0

_SETTINGS = {
    "DETECTOR_MAX_REPLICAS": "2",
    # Each start looks for files without a row, of any age: what is being uploaded it must leave alone all the same.
    "ORPHAN_GRACE_S": "0",
}

_MAX_DELAY_S = 5.0  # until the power is cut, from the first acknowledgement on


class Run:
    """One application, and what is done to it."""

    def __init__(self, service: RunningServe, seed: int, told: Callable[[str], None], within_s: float) -> None:
        """
        Args:
            seed: Of what is chosen by chance: pictures, processes, moments.
            told: Called with what happens, for people who wait.
            within_s: In which the service acknowledges uploads again, and has done what is pending. As long as that,
                patient clients try again.
        """
        self.findings = Findings()
        self.service = service
        self._chance = random.Random(seed)
        self._next_picture = 10**6 * seed
        self._told = told
        self._within_s = within_s
        self._everything = Told()

    def kill(self, count: int) -> None:
        """Kills so many single processes; then everything is killed and started again, and looked at."""
        uploads = self._uploads("kills")

        def counted(kill: Kill) -> None:
            self.findings.kills.append(kill)
            number = len(self.findings.kills)
            self._told(f"{number}: {kill.kind}, {kill.recovery_s:.1f} s; {len(uploads.told.acknowledged)} acknowledged")

        with uploads.running(), self._noting_the_end():
            self.findings.breaches += kill_one_after_the_other(
                self.service, uploads, count, self._chance, counted, self._within_s
            )
        self._note_failures(uploads.told)
        # Whoever was killed last may still be away: that all is back by itself is the first thing to see.
        with uploads.running(), self._noting_the_end():
            wait_for_acknowledgement(uploads, since=time.monotonic())
            wait_for_serves_haproxy(self.service)
        self._told("calm after the kills: looking at what is left")
        self.findings.breaches += breaches_in(self.service, self._everything, self._within_s, has_swept=False)
        self._told("starting again, and looking once more")
        self._start_again()
        self.findings.breaches += breaches_in(self.service, self._everything, self._within_s)

    def cut_power(self, count: int) -> None:
        """Kills everything at a moment of chance, starts it again, looks what is left; so many times."""
        uploads = self._uploads("power cuts")
        for number in range(1, count + 1):
            with uploads.running():
                wait_for_acknowledgement(uploads, since=time.monotonic())
                time.sleep(self._chance.uniform(0, _MAX_DELAY_S))
                started_at = self._start_again()
                serving_again_s = wait_for_acknowledgement(uploads, since=started_at)
            self.findings.power_cuts_s.append(serving_again_s)
            if serving_again_s > self._within_s:
                self.findings.breaches.append(f"power cut {number}: serving again after {serving_again_s:.1f} s")
            self.findings.breaches += breaches_in(self.service, self._everything, self._within_s)
            self._told(f"power cut {number}: {serving_again_s:.1f} s, {len(uploads.told.acknowledged)} acknowledged")
        self._note_failures(uploads.told)

    def _uploads(self, fault: str) -> Uploads:
        uploads = Uploads(self.service.url, self._next_picture, self._everything, self._within_s)
        self._next_picture += 10**7
        self.findings.told[fault] = uploads.told
        return uploads

    def _start_again(self) -> float:
        """Cuts the power; when (monotonic) the new start, on the same ports, began."""
        service = self.service
        cut_power(service)
        http, grpc = (int(address.rpartition(":")[2]) for address in (service.url, service.grpc_address))
        started_at = time.monotonic()
        service.local.start(service.environment, Ports(http, grpc, free_port(), free_port()))
        return started_at

    def _note_failures(self, told: Told) -> None:
        self.findings.breaches += [f"failed though tried again: {failure}" for failure in told.failures]

    @contextlib.contextmanager
    def _noting_the_end(self) -> Iterator[None]:
        """A service that is not back is a breach that ends this kind of fault, and is looked at after a new start."""
        try:
            yield
        except NotBackError as error:
            self.findings.breaches.append(str(error))


@contextlib.contextmanager
def opened_run(
    folder: Path, seed: int, told: Callable[[str], None] = lambda _: None, within_s: float = PROMISED_S
) -> Iterator[Run]:
    """A run against an application of its own, whose data and logs are in this folder; the rest as ``Run``."""
    with running_serve(folder, **_SETTINGS) as service:
        yield Run(service, seed, told, within_s)
