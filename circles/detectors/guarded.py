"""A detector in a process of its own: a picture that kills it, or that it never finishes, harms no other."""

import hashlib
import logging
import os
import socket
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe

from circles.detection import DetectorInfo
from circles.detectors.encoded import DetectionOutcome
from circles.errors import CirclesError, DetectionFailedError, DetectorUnavailableError
from circles.settings import Settings

logger = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-m", "circles.detectors.guarded_process")
"""What detects; it is given the file descriptor of its connection."""

ALLOCATOR_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
"""Environment by which glibc, in a process started with it, keeps a picture's arrays, some MB each, for the next one.

Left to itself, it now and then begins to give them back after every picture, and the kernel's clearing of four thousand
pages a picture takes a quarter of detection.
"""

_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 5.0
_DEATHS_ALONE = 2
_REMEMBERED = 1000


class GuardedDetector:
    """As ``EncodedDetector``, in another process. One instance, one thread at a time.

    When that process ends with pictures in work, by a crash, for want of memory or because it took too long, each of
    them is tried again alone, in a new one. Two deaths of a picture alone, the first one included where it was the only
    one in work, make it one in which nothing can be detected; those that were only in its company are detected in as
    always. When this process ends, so does the other.
    """

    def __init__(self, settings: Settings, program: Sequence[str] = PROGRAM) -> None:
        """Starts the process, and returns when the detector is loaded.

        Raises:
            WeightsError: The learned detector's weights are absent or damaged.
            DetectorUnavailableError: The process did not get as far as that.
        """
        self._settings = settings.without_secrets()
        self._program = program
        self._timeout_s = settings.hang_limit_s
        # SHA-256 of pictures -> how often the process died of them alone: not only while their callers wait.
        self._deaths: OrderedDict[bytes, int] = OrderedDict()
        self._process: _DetectorProcess | None = _DetectorProcess(self._program, self._settings)
        self._can_start = True
        self.info: DetectorInfo = self._process.info

    def detect(self, files: Sequence[bytes]) -> list[DetectionOutcome]:
        """As ``EncodedDetector.detect``.

        Raises:
            DetectorUnavailableError: The process ended and could not be started again.
        """
        if len(files) > 1 and not self._is_any_suspected(files):
            outcomes = self._try(files)
            if outcomes is not None:
                return outcomes
        return [self._detect_alone(image_bytes) for image_bytes in files]

    def check(self) -> None:
        """Raises DetectorUnavailableError when the last attempt to start a process failed; from any thread."""
        if not self._can_start:
            raise DetectorUnavailableError("the detector's process cannot be started")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()

    def _is_any_suspected(self, files: Sequence[bytes]) -> bool:
        """Whether the process has died of one of them alone."""
        return bool(self._deaths) and any(_digest(image_bytes) in self._deaths for image_bytes in files)

    def _detect_alone(self, image_bytes: bytes) -> DetectionOutcome:
        digest = _digest(image_bytes)
        while self._deaths.get(digest, 0) < _DEATHS_ALONE:
            outcomes = self._try([image_bytes])
            if outcomes is not None:
                self._deaths.pop(digest, None)
                return outcomes[0]
            self._deaths[digest] = self._deaths.get(digest, 0) + 1
            if len(self._deaths) > _REMEMBERED:
                self._deaths.popitem(last=False)
        return DetectionFailedError("the detector died of this picture twice, though it had nothing else to do")

    def _try(self, files: Sequence[bytes]) -> list[DetectionOutcome] | None:
        """None when the process ended meanwhile; there is a new one then."""
        process = self._process
        if process is not None and process.has_ended:
            logger.warning("the detector's process ended, with nothing in work")  # so not of what comes now
            process = None
        try:
            return (process or self._start()).detect(files, self._timeout_s)
        except _ProcessDiedError as error:
            logger.warning("the detector's process %s, with %d pictures in work", error, len(files))
        self._start()
        return None

    def _start(self) -> "_DetectorProcess":
        """A new process, in the place of one that ended; raises as ``detect``."""
        self.close()
        self._process = None
        try:
            self._process = _DetectorProcess(self._program, self._settings)
        finally:
            self._can_start = self._process is not None
        return self._process


class _ProcessDiedError(Exception):
    """The message says how."""


class _DetectorProcess:
    """The other process, ``circles.detectors.guarded_process``, from its start to its end."""

    def __init__(self, program: Sequence[str], settings: Settings) -> None:
        ours, theirs = Pipe()
        # Not by multiprocessing, which would run this process's main module again: Ray's, in a replica.
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [*program, str(theirs.fileno())],
                env={
                    **ALLOCATOR_VARIABLES,
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._connection: Connection[object, object] = ours
        try:
            answer = self._ask(settings, _START_TIMEOUT_S)
        except _ProcessDiedError as error:
            raise DetectorUnavailableError(f"the detector did not start: its process {error}") from error
        if isinstance(answer, CirclesError):
            self.kill()
            raise answer
        assert isinstance(answer, DetectorInfo)
        self.info = answer

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, though nobody here ended it."""
        return self._process.poll() is not None

    def detect(self, files: Sequence[bytes], timeout_s: float) -> list[DetectionOutcome]:
        """Raises _ProcessDiedError; the process is gone then."""
        outcomes = self._ask(files, timeout_s)
        assert isinstance(outcomes, list)
        return outcomes

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _ask(self, message: object, timeout_s: float) -> object:
        _limit_waiting(self._connection, timeout_s)
        try:
            self._connection.send(message)
            return self._connection.recv()
        except BlockingIOError:
            reason = f"hung for {timeout_s:g} s"
        except (EOFError, OSError):
            reason = f"ended with status {self._status()}"
        self.kill()
        raise _ProcessDiedError(reason)

    def _status(self) -> int | None:
        """Of the ended process; None where only its connection has ended."""
        try:
            return self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None


def _limit_waiting(connection: "Connection[object, object]", timeout_s: float) -> None:
    """Lets it fail with BlockingIOError when the other end takes nothing, or says nothing, for so long."""
    seconds, fraction = divmod(timeout_s, 1.0)
    timeval = struct.pack("ll", int(seconds), int(1e6 * fraction))
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _digest(image_bytes: bytes) -> bytes:
    return hashlib.sha256(image_bytes).digest()
