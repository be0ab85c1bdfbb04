"""The whole line on one page: portraits in, a shareable LoRA out, and a state on the disk in between.

`personalize` is what the terminal and the node both call; the caller owns progress, previews and the decision to stop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import kohya
from .artifact import Artifact, check_name
from .config import TrainConfig
from .dataset import encode
from .estimate import Estimate, estimate
from .files import write_atomic
from .identity import Recogniser
from .prompts import TEMPLATES
from .trainer import DTYPES, Run, TrainStep, train
from .types import MagiCaptureError, Portraits

if TYPE_CHECKING:
    from .backbone import Backbone

STATE_EVERY = 100  # steps between two states on the disk
KEY_FORMAT = "3"  # raised when the same inputs would train differently
OUT_OF_MEMORY = (
    "out of memory, with gradient_checkpointing and {batch_size} pictures at once too: close what else uses the memory "
    "and resume at the last step; or train anew with a smaller resolution or lora_rank"
)
RETRY = "out of memory: goes on with gradient_checkpointing and {batch_size} pictures at once; the result is the same"
TERMS = ("reconstruction", "attention", "identity", "prior", "total")  # a row of the history


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished training. files: the LoRA first, then one embedding a learned word. history: a row of TERMS for every
    step, over both phases. resumed_from: the step whose state it went on from, 0 = it began anew."""

    key: str
    files: list[Path]
    history: list[list[float]]
    resumed_from: int = 0


def personalize(
    backbone: Backbone,
    subject: Portraits,
    style: Portraits,
    config: TrainConfig,
    *,
    name: str,
    folder: Path,
    save: Callable[[Artifact], list[Path]],
    key: str = "",
    recogniser: Recogniser | None = None,
    device: torch.device | str = "cpu",
    resume: bool = True,
    on_estimate: Callable[[Estimate], None] = lambda estimate: None,
    on_step: Callable[[TrainStep], None] = lambda step: None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Encode, invert, tune, save. The backbone is moved to the device and the configuration's precision.

    folder: keeps the state and the result of this name. save: puts the artifact where it belongs, returns its files.
    key: the `result_key` of these inputs, from a caller who has it: computing it reads every weight.
    on_step may look at the live run, make previews, and raise whatever it likes to stop: the state is then on the disk,
    as it is after any fault, and the next call with the same inputs and `resume` goes on from it, bit for bit. Where
    memory runs out, the same run goes on by itself with less of it, which `say` tells.
    """
    check_name(name)
    if not config.inversion.num_steps + config.tuning.num_steps:
        raise MagiCaptureError("nothing to train: inversion.num_steps and tuning.num_steps are both 0")
    key = key or result_key(backbone, subject, style, config, recogniser)
    check_weights(backbone)
    backbone.to(torch.device(device), resolve_dtype(config, torch.device(device)))
    state_file = folder / f"state-{key[:16]}.safetensors"
    if not resume:
        state_file.unlink(missing_ok=True)

    def attempt(config: TrainConfig) -> Result:
        dataset = encode(backbone, subject, style, config, recogniser)
        on_estimate(estimate(backbone, dataset, config))
        state = _load_state(state_file)
        history: list[list[float]] = state.pop("history", torch.empty(0, len(TERMS))).tolist()
        resumed_from, result = len(history), None

        def keep(step: TrainStep) -> None:
            _save_state(state_file, step, history)

        with closing(train(backbone, dataset, config, state)) as steps:
            for step in _kept_at_a_fault(steps, keep):
                history.append([getattr(step.losses, term) for term in TERMS])
                if step.step == step.num_steps:  # kept before anyone can say stop
                    files = save(to_artifact(step.run, name))
                    result = Result(key=key, files=files, history=history, resumed_from=resumed_from)
                    _save_result(folder, result)
                elif step.step % STATE_EVERY == 0:
                    keep(step)
                try:
                    on_step(step)
                except BaseException:  # the host's own way to say stop may be none of Exception's
                    if result is None:
                        keep(step)
                    raise
        assert result is not None  # a state is only kept before the last step
        state_file.unlink(missing_ok=True)
        return result

    return within_memory(attempt, config, say)


def check_weights(backbone: Backbone) -> None:
    """Raises MagiCaptureError for a checkpoint that holds NaN or infinity: every picture and loss would."""
    for part in ("unet", "text_encoder", "vae"):
        for name, weight in getattr(backbone, part).state_dict().items():
            if not weight.sum(dtype=torch.float32).isfinite():  # one pass, and no second tensor of its size
                raise MagiCaptureError(
                    f"the checkpoint's {part} holds numbers that are not finite, in {name}: get the file again, or "
                    "take another"
                )


def within_memory(attempt: Callable[[TrainConfig], Result], config: TrainConfig, say: Callable[[str], None]) -> Result:
    """attempt(config); where memory runs out, once more with checkpointing and half the pictures in a pass.

    Raises MagiCaptureError with the remedy when it runs out again, or when there is nothing left to save.
    """
    less = config.model_copy(update={"gradient_checkpointing": True, "batch_size": max(config.batch_size // 2, 1)})
    try:
        return attempt(config)
    except torch.OutOfMemoryError:
        pass  # gone on below: in here the traceback would hold on to the memory of the failed step
    if less != config:
        say(RETRY.format(batch_size=less.batch_size))
        with suppress(torch.OutOfMemoryError):
            return attempt(less)
    raise MagiCaptureError(OUT_OF_MEMORY.format(batch_size=less.batch_size))


def _kept_at_a_fault(steps: Iterable[TrainStep], keep: Callable[[TrainStep], None]) -> Iterator[TrainStep]:
    """The same steps; when one fails, for want of memory or by a loss that is none, the state before it is kept.

    It can be: nothing moves before all of a step's passes are done and their losses are known.
    """
    step = None
    try:
        for step in steps:
            yield step
    except (torch.OutOfMemoryError, MagiCaptureError):
        if step is not None:
            keep(step)
        raise


def resolve_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a graphics card that computes in it, else fp32."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    return (
        torch.bfloat16
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else torch.float32
    )


def to_artifact(run: Run, name: str) -> Artifact:
    """The live run as the file will hold it."""
    layers = run.lora()
    return Artifact(
        name=name,
        architecture=run.backbone.architecture,
        tokens=tuple(run.tokens()),
        lora=kohya.to_kohya(kohya.UNET, layers["unet"]) | kohya.to_kohya(kohya.TEXT_ENCODER, layers["text_encoder"]),
        config=run.config.model_dump(mode="json"),
        templates={task: list(templates) for task, templates in TEMPLATES.items()},
        rank_split=run.config.lora.rank_split if layers["unet"] else {},
    )


# -- what is kept in the folder ----------------------------------------------------------------------------------------


def result_key(
    backbone: Backbone,
    subject: Portraits,
    style: Portraits,
    config: TrainConfig,
    recogniser: Recogniser | None = None,
) -> str:
    """A hash of all that decides the result: pixels, masks, weights and settings; with a recogniser, landmarks too."""
    tensors = [subject.images, subject.masks, style.images, style.masks]
    for part in (backbone.unet, backbone.text_encoder, backbone.vae):
        tensors += part.state_dict().values()
    if recogniser is not None:
        tensors += recogniser.state_dict().values()
        tensors += [face.landmarks for side in (subject, style) for face in side.faces if face.landmarks is not None]
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter: 4 GB of weights take about a second
        digests = pool.map(_digest, tensors)
    settings = config.model_dump_json(exclude={"batch_size", "gradient_checkpointing"})  # these decide cost alone
    whole = hashlib.blake2b(f"{KEY_FORMAT} {settings}".encode(), digest_size=16)
    for digest in digests:
        whole.update(digest)
    return whole.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    """Of shape and values; the same in whatever precision the same values are kept."""
    values = tensor.detach().cpu().float().contiguous()
    return hashlib.blake2b(values.numpy().data, digest_size=16, person=str(tuple(values.shape)).encode()[:16]).digest()


def find_result(folder: Path, key: str) -> Result | None:
    """The finished training of this key, if all its files are still there."""
    result = _read_result(_result_file(folder, key))
    return result if result and result.key == key and all(file.is_file() for file in result.files) else None


def missing_files(folder: Path) -> list[str]:
    """Files of finished trainings that are no longer there."""
    results = map(_read_result, sorted(folder.glob("result-*.json")))
    return [str(file) for result in results if result for file in result.files if not file.is_file()]


def samples_folder(folder: Path, key: str) -> Path:
    """Where the sample pictures of the training of this key belong, apart from those of others with its name."""
    return folder / f"samples-{key[:16]}"


def _result_file(folder: Path, key: str) -> Path:
    return folder / f"result-{key[:16]}.json"


def _read_result(path: Path) -> Result | None:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return Result(key=saved["key"], files=[Path(file) for file in saved["files"]], history=saved["history"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # none yet, or one that is not ours to read: training again is right


def _save_result(folder: Path, result: Result) -> None:
    saved = {"key": result.key, "files": [str(file) for file in result.files], "history": result.history}
    write_atomic(_result_file(folder, result.key), lambda file: file.write_text(json.dumps(saved), encoding="utf-8"))


def _save_state(path: Path, step: TrainStep, history: list[list[float]]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = step.state() | {"history": torch.tensor(history, dtype=torch.float64)}
    write_atomic(path, lambda file: save_file(state, file))


def _load_state(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # copies: what is mapped cannot be replaced on Windows, and the next state takes this one's place
        return {key: value.clone() for key, value in load_file(path).items()} if path.is_file() else {}
    except SafetensorError as error:
        raise MagiCaptureError(
            f"{path}: the saved state is damaged ({error}); delete it to train from the start"
        ) from error
