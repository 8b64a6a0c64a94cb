"""Making files and folders durable."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Everything under the folder, and the folder's own name."""
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                sync(Path(root, file))
            except FileNotFoundError:  # another process tidied it away
                continue
        sync(Path(root))
    sync(folder.parent)
