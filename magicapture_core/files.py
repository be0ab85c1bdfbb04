"""Files that are whole or not there, and weights of others that are data only. Knows nothing of what is in them."""

from __future__ import annotations

import os
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .types import MagiCaptureError

if TYPE_CHECKING:  # install.py uses this module where torch may be missing
    from torch import Tensor

MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 16  # CLIP's vocabulary of 49408 is the largest
NUMBERS = r"float(16|32|64)|bfloat16|float8_e[45]m[23](fn|fnuz)?|u?int(8|16|32|64)|bool"  # dtypes that are converted


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, sync it to the disk, then rename it to `path`.

    Whoever looks sees the old file or the new one, also after a crash. Folders are made; a file that is there is
    replaced. Returns `path`.
    """
    with written_beside(path, write) as beside:
        os.replace(beside, path)
    return path


@contextmanager
def written_beside(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """A hidden file beside `path` that `write` has filled, synced to the disk; inside the block it may be renamed.

    Its suffix is that of `path`, by which some libraries choose the format; it has none in place of .safetensors, lest
    half a file of weights that a kill leaves be listed by those who look for them. The mode is that of any new file
    here: safetensors would leave one that its owner alone can read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.removesuffix(".safetensors")
    beside = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{suffix}")
    try:
        beside.touch()
        mode = beside.stat().st_mode
        write(beside)
        beside.chmod(mode)
        with beside.open("r+b") as file:
            os.fsync(file.fileno())
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def place(beside: Path, path: Path) -> None:
    """Give a whole file its place, where there must be none yet. Raises FileExistsError when there is."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as exFAT: for a moment the file is there and empty
        path.touch(exist_ok=False)
        try:
            os.replace(beside, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def write_weights(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Into a .safetensors file. Raises OSError, as all writing does, where there is no room or no right to."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path.parent}: nothing can be written there: {error}") from error


def read_weights(path: Path) -> Any:
    """What a .safetensors file holds; any other as torch reads it with weights_only, which runs nothing of the file.

    Raises MagiCaptureError when it cannot be read, and for tensors that are larger than what the file holds of them.
    """
    import torch
    from safetensors.torch import load_file

    try:
        is_safe = path.suffix.lower() == ".safetensors"
        if not is_safe:
            _check_archive(path)
        weights = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
        for name, tensor in _named_tensors(weights):
            check_plain(name, tensor)
        return weights
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{path.name}: {error}") from error
    except Exception as error:  # each reader has its own kinds for a file that is cut off or holds more than tensors
        raise MagiCaptureError(
            f"{path.name}: cannot be read: damaged, cut off, or more than tensors, which is not opened here "
            f"({type(error).__name__}); fetch it again, or save the network's state_dict() alone"
        ) from error


def _check_archive(path: Path) -> None:
    """Raises ValueError for a zip that unfolds to more than it is: torch writes its members as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("an archive that unfolds to more than it is")


def _named_tensors(weights: Any) -> Iterator[tuple[str, Tensor]]:
    """Those of a dictionary and of the dictionaries in it, which may hold one another."""
    import torch

    waiting, seen = [weights], set()
    while waiting:
        inner = waiting.pop()
        if not isinstance(inner, dict) or id(inner) in seen:
            continue
        seen.add(id(inner))
        waiting += inner.values()
        yield from ((str(key), value) for key, value in inner.items() if isinstance(value, torch.Tensor))


def check_plain(name: str, tensor: Tensor) -> None:
    """Raises MagiCaptureError unless it is dense, on the CPU, of numbers that can be reckoned with, and takes as much
    of the file as its shape says: a few bytes can be told to be a tensor of any size."""
    import torch

    is_strided = tensor.layout == torch.strided and not tensor.is_quantized
    is_dense = is_strided and tensor.device.type == "cpu" and tensor.ndim <= MAX_DIMENSIONS
    kind = str(tensor.dtype).removeprefix("torch.")
    if not is_dense or not re.fullmatch(NUMBERS, kind):
        raise MagiCaptureError(f"{name} is of a kind that is not read here ({kind}); take fp32, fp16 or bf16")
    if not 0 < tensor.nbytes <= tensor.untyped_storage().nbytes():
        raise MagiCaptureError(
            f"{name} is told to be {tuple(tensor.shape)} and holds less: not a file to trust; fetch it again"
        )


def check_sizes(settings: Any, num_weights: int, name: str) -> None:
    """Raises MagiCaptureError where a network's settings hold a number that no size of one is, or more layers than
    its files have weights: a class would take memory and minutes for them before any weight is looked at. name: the
    file's."""
    waiting = [("", settings)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        elif isinstance(value, int | float) and not abs(value) <= MAX_SIZE:
            raise MagiCaptureError(f"{name}: {value} is no size of a network's; fetch it again")
        elif isinstance(value, int) and "layers" in key and value > num_weights:
            raise MagiCaptureError(f"{name}: {key} is {value}, and there are {num_weights} weights; fetch it again")


def count_weights(folder: Path) -> int:
    """Of all its safetensors files. Raises MagiCaptureError where there are none, SafetensorError for a broken one."""
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += len(file.keys())
    if not count:
        raise MagiCaptureError(f"{folder.name}: holds no weights in .safetensors; save the pipeline with them")
    return count


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """read_weights of a file that holds named tensors and nothing else. Raises MagiCaptureError for any other."""
    import torch

    weights = read_weights(path)
    is_plain = isinstance(weights, dict) and all(isinstance(value, torch.Tensor) for value in weights.values())
    if not is_plain or not all(isinstance(key, str) for key in weights):
        raise MagiCaptureError(f"{path.name}: no plain state dict; save the network's state_dict() alone")
    return weights


def check_weights(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str, kind: str) -> None:
    """Every weight is there, and no other. name: the file's, kind: what it should be, both for the message."""
    shapes = [{key: tuple(value.shape) for key, value in weights.items()} for weights in (wanted, given)]
    faults = [key for key in shapes[0] | shapes[1] if shapes[0].get(key) != shapes[1].get(key)]
    if faults:
        right, found = (of.get(faults[0], "nothing") for of in shapes)
        raise MagiCaptureError(
            f"{name}: {faults[0]} should be {right} and is {found} ({len(faults)} such): damaged, quantised or no "
            f"{kind}; fetch it again"
        )
