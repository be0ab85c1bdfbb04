"""The rows of the table: what is set against what, and the bar where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from magicapture_core.types import MagiCaptureError

from .workload import Method, Workload

GRAMMAR = "NAME:PIXELS:PAIRS, then :bf16 and :checkpointing where wanted"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """first and second change the plain W0 of a size. bars: pixels -> what their ratio may be at most.

    saves_memory: whether the first may not take more than the second. uneven: whether some of the first's steps do more
    than others; the ratio is then of means.
    """

    title: str
    first: Callable[[Workload], Workload]
    second: Callable[[Workload], Workload]
    bars: Mapping[int, float] = field(default_factory=dict)
    saves_memory: bool = False
    uneven: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """Two workloads that take turns `pairs` times."""

    kind: Kind
    plain: Workload
    pairs: int

    @property
    def workloads(self) -> tuple[Workload, Workload]:
        return self.kind.first(self.plain), self.kind.second(self.plain)

    @property
    def title(self) -> str:
        marks = [self.plain.dtype, *(["checkpointing"] if self.plain.checkpointing else [])]
        return f"{self.kind.title}, {', '.join(marks)}"

    @property
    def bar(self) -> float | None:
        return self.kind.bars.get(self.plain.pixels)


def having(*features: str) -> Callable[[Workload], Workload]:
    return lambda plain: replace(plain, features=features)


def made_by(method: Method) -> Callable[[Workload], Workload]:
    return lambda plain: replace(plain, method=method)


def batch_of(size: int) -> Callable[[Workload], Workload]:
    return lambda plain: replace(plain, batch=size)


def checkpointed(plain: Workload) -> Workload:
    return replace(plain, checkpointing=True)


NO_SLOWER: dict[int, float] = dict.fromkeys((64, 128, 256, 512), 1.05)
KINDS: dict[str, Kind] = {
    "kohya": Kind(
        title="W0, ours / kohya sd-scripts",
        first=having(),
        second=made_by("kohya"),
        bars=NO_SLOWER,
        saves_memory=True,
    ),
    "diffusers": Kind(
        title="W0, ours / diffusers DreamBooth-LoRA", first=having(), second=made_by("diffusers"), bars=NO_SLOWER
    ),
    "comfyui": Kind(
        title="W0, ours / ComfyUI TrainLoraNode",
        first=having(),
        second=made_by("comfyui"),
        bars={64: 1 / 4, 512: 1 / 1.4},
    ),
    "mask": Kind(title="masked loss, a face / the whole picture", first=having("mask"), second=having()),
    "refocusing": Kind(
        title="attention refocusing, on / off", first=having("refocusing"), second=having(), bars={256: 1.05, 512: 1.05}
    ),
    "identity": Kind(
        title="identity loss, on / off, steps of 1:1:1, of means",
        first=having("three tasks", "identity"),
        second=having("three tasks"),
        bars={512: 1.25},
        uneven=True,
    ),
    "identity-firing": Kind(
        title="identity loss, on / off, steps where it fires",
        first=having("composed", "identity always"),
        second=having("composed"),
    ),
    "sefi": Kind(
        title="SeFi-IDE / Textual Inversion",
        first=made_by("sefi"),
        second=made_by("textual-inversion"),
        bars={512: 1.10},
    ),
    "prior": Kind(title="prior preservation, on / off", first=having("mask", "prior"), second=having("mask")),
    "words": Kind(title="the two words learn, on / off", first=having("words"), second=having()),
    "text-encoder": Kind(title="LoRA of the text encoder, on / off", first=having("text encoder"), second=having()),
    "cross-attention": Kind(
        title="64 modules, our default / 128 of W0", first=having("cross-attention"), second=having()
    ),
    "split": Kind(title="split adapters / joint", first=having("split"), second=having()),
    "checkpointing": Kind(title="checkpointing, on / off", first=checkpointed, second=having()),
    "batch-2": Kind(title="batch of 2 / of 1", first=batch_of(2), second=having()),
    "batch-4": Kind(title="batch of 4 / of 1", first=batch_of(4), second=having()),
    "batch-8": Kind(title="batch of 8 / of 1", first=batch_of(8), second=having()),
}

# Neighbours share processes. On a CPU as many pairs as half an hour of two cores has time for, so fewer at 512 px.
PLANS: dict[str, list[str]] = {
    "cpu": [
        *("kohya:64:30", "diffusers:64:30", "comfyui:64:10"),
        *(f"{name}:64:10" for name in ("cross-attention", "words", "text-encoder", "split", "checkpointing")),
        *(f"{name}:64:10" for name in ("batch-2", "batch-4", "batch-8", "mask", "prior")),
        *("kohya:128:30", "kohya:256:30", "diffusers:256:10", "refocusing:256:30"),
        *("kohya:512:10:bf16", "refocusing:512:10:bf16", "identity-firing:512:6:bf16", "identity:512:6:bf16"),
        "sefi:512:10:bf16",
        "comfyui:512:4:bf16:checkpointing",
    ],
    "cuda": [
        *(f"{name}:{pixels}:30:bf16" for pixels in (64, 128, 256, 512) for name in ("kohya", "diffusers")),
        *("comfyui:64:30:bf16", "comfyui:512:30:bf16:checkpointing"),
        *("refocusing:256:30:bf16", "refocusing:512:30:bf16", "identity-firing:512:30:bf16", "identity:512:30:bf16"),
        "sefi:512:30:bf16",
        *(f"{name}:512:30:bf16" for name in ("cross-attention", "words", "text-encoder", "split", "checkpointing")),
        *(f"{name}:512:30:bf16" for name in ("batch-2", "batch-4", "batch-8", "mask", "prior")),
    ],
}


def parse_row(text: str) -> Row:
    """Raises MagiCaptureError that says what a row looks like."""
    name, *parts = text.split(":")
    numbers, marks = parts[:2], parts[2:]
    good = name in KINDS and len(numbers) == 2 and all(number.isdecimal() for number in numbers)
    if not good or set(marks) - {"fp32", "bf16", "checkpointing"}:
        raise MagiCaptureError(f"{text}: a row is {GRAMMAR}; the names are {', '.join(KINDS)}")
    pixels, pairs = map(int, numbers)
    if pairs < 1 or pixels < 64 or pixels % 64:
        raise MagiCaptureError(f"{text}: pixels are a multiple of 64, and pairs at least 1")
    plain = Workload(pixels=pixels, dtype="bf16" if "bf16" in marks else "fp32", checkpointing="checkpointing" in marks)
    return Row(kind=KINDS[name], plain=plain, pairs=pairs)
