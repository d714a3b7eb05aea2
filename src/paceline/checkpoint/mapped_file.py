"""A model's file while it is in use: mapped into memory, and open for reads at a position.

Both belong to the file that was opened, whatever its path leads to later.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


class MappedFile:
    """
    Args:
        file: open and not empty; the caller may close it.

    Raises:
        OSError: the system refuses.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)

    def forget(self, start: int, num_bytes: int) -> None:
        """Take the pages of a range off this process, where the system can: who reads them again
        gets them from the file."""
        if hasattr(mmap, "MADV_DONTNEED") and num_bytes:
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            self.data.madvise(mmap.MADV_DONTNEED, first, start + num_bytes - first)


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """Where a tensor lies."""

    file: MappedFile
    start: int
    num_bytes: int

    def forget(self) -> None:
        self.file.forget(self.start, self.num_bytes)
