"""The process in which a ``GuardedDetector`` detects: ``python -m circles.detectors.guarded_process FD``.

It is told its settings by the connection of that file descriptor, then lists of picture files, and answers each with
what came of it.
"""

import logging
import os
import resource
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from circles.detectors.encoded import open_detector
from circles.errors import CirclesError
from circles.settings import Settings

# What answers, and hands over pictures, goes first where cores are short; but others that are busy on them should not
# starve detection, as with 19. Added to what it has.
_NICENESS = 5
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def main() -> None:
    """Detects until the other end of the connection is closed."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal; the end comes by the connection
    connection: Connection[object, object] = Connection(int(sys.argv[1]))
    settings = connection.recv()
    assert isinstance(settings, Settings)
    os.nice(_NICENESS)
    _be_the_first_to_go(settings.detector_memory_bytes if settings.detector_num_gpus == 0 else None)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    try:
        detector = open_detector(settings)
    except CirclesError as error:
        connection.send(error)
        return
    connection.send(detector.info)
    while True:
        try:
            files = connection.recv()
        except (EOFError, ConnectionError):
            return
        assert isinstance(files, list)
        connection.send(detector.detect(files))


def _end_with(connection: "Connection[object, object]") -> None:
    """Ends this process when the other end is closed: nobody waits any more for what is computed, or never ends."""
    hung_up = select.poll()
    hung_up.register(connection, 0)  # that is told whatever else is asked for
    hung_up.poll()
    os._exit(0)


def _be_the_first_to_go(memory_bytes: int | None) -> None:
    """Memory that a picture wants without end is refused here, before it is the machine's or the pod's."""
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    if _OOM_SCORE.exists():  # Linux
        _OOM_SCORE.write_text("1000")


if __name__ == "__main__":
    main()
