"""The memory allocator of the C library, told to keep what is freed for what comes next.

A chunk of a text takes tensors of many megabytes and frees them again.  glibc gives such pieces back to the system at
once, which then hands them out anew, page by page and filled with zeros: up to a quarter of the time of a chunk.  What
is kept instead is given back where a model or a run has ended, and now and then while a text is read.  Other C
libraries are left alone, and so is one to which the environment says something else.
"""

import ctypes
import os
import platform
from typing import Any

LARGEST = 512 << 20
"""Bytes of the largest piece that is kept: the logits of 512 tokens are about 100 MB, and those of 2,048 are 400."""
KEPT = 512 << 20
"""Bytes at the end of the heap from which on they are given back at once."""
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENAS = -1, -3, -8
"""What glibc calls its settings (malloc.h)."""
SAID = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")


def keep_freed() -> None:
    """Keep what is freed.  Threads that begin later have one pool with all others: those that glibc makes for a thread
    are too small for such pieces."""
    if (libc := _glibc()) is not None and not any(name in os.environ for name in SAID):
        for setting, value in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT), (ARENAS, 1)):
            libc.mallopt(setting, value)


def give_back() -> None:
    """Give back to the system what is kept and nobody uses."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library, where it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
