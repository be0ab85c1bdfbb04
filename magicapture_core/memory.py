"""When a device has no memory left, each says so in its own way."""

from __future__ import annotations

import torch

# What plain RuntimeErrors say: CUDA's driver and its libraries, Apple's MPS, the processor's allocator.
MESSAGES = (
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",  # the same allocator, on Windows
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at once would help: torch's own kind, or a RuntimeError that says it in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text.lower() in str(error).lower() for text in MESSAGES)
