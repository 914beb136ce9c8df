"""Processes that are no children of the tests, or whose end comes by itself."""

import psutil


def has_ended(process: psutil.Process) -> bool:
    """Whether it has, also where nobody has taken its exit status yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # since it was running
        return True
