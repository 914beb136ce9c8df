"""Folders that outlive a power cut: making one changes the folder above it, and that has to be fsynced."""

import os
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are absent; durable on return.

    Raises:
        OSError: It cannot be made, or something else has its name.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)  # somebody else may have been faster
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
