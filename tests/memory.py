"""What a long run of tests has freed, given back to the system: other processes on the machine need it."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """glibc keeps freed blocks otherwise, by now a few gigabytes."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
