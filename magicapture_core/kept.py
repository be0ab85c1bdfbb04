"""What a training keeps in its folder, and the key by which it is found again.

In: whatever decides a result, and what a run has to tell. Out: files beside their place, then renamed. A folder holds
the trainings of one name; the files of each carry its key.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .class_images import class_nouns
from .config import TrainConfig
from .dataset import check_photos
from .dino import Dino
from .files import write_atomic, write_weights
from .identity import Recogniser
from .types import Face, LossTerms, MagiCaptureError, Photos, Portraits

if TYPE_CHECKING:
    from .backbone import Backbone
    from .run import RunConfig
    from .watch import Watch

Made = TypeVar("Made")
KEY_FORMAT = "6"  # raised when the same inputs would train differently
TERMS = ("reconstruction", "attention", "identity", "prior", "total")  # a row of the history


@dataclass(kw_only=True)
class Told:
    """What a run has told so far. history: a row of TERMS for every step. looks: step and likeness of every scored look
    that could tell. looked_at: the step of the last look."""

    history: list[list[float]] = field(default_factory=list)
    looks: list[list[float]] = field(default_factory=list)
    looked_at: int = field(default=0, compare=False)

    def add(self, losses: LossTerms) -> None:
        self.history.append([getattr(losses, term) for term in TERMS])

    @property
    def likenesses(self) -> list[float]:
        return [likeness for _, likeness in self.looks]

    @property
    def best(self) -> int | None:
        """The first most alike step; None where no face was ever seen, or nobody could tell."""
        step, likeness = max(self.looks, key=lambda look: look[1], default=(0, 0.0))
        return int(step) if likeness > 0 else None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished training. files: the LoRA or the identity, then its embeddings. best_files: the same of the most alike
    step, where that was not the last. resumed_from: the step whose state it went on from, 0 = it began anew; its last
    one where it was found finished."""

    key: str
    files: list[Path]
    told: Told
    best_files: list[Path] = field(default_factory=list)
    resumed_from: int = 0


@dataclass(frozen=True)
class Kept:
    """The files of one training in the folder of its name."""

    folder: Path
    key: str

    @property
    def samples(self) -> Path:
        """Folder of the pictures that are to show the person."""
        return self.folder / f"samples-{self.key[:16]}"

    def sample(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}.png"

    @property
    def last_sample(self) -> Path:
        """The newest; one that is not there where none was made."""
        return max(self.samples.glob("step-*.png"), default=self.sample(0))

    @property
    def looks(self) -> Path:
        """Folder of the same beside those of other prompts, and where the words look."""
        return self.folder / f"looks-{self.key[:16]}"

    @property
    def state_file(self) -> Path:
        return self.folder / f"state-{self.key[:16]}.safetensors"

    def save_state(self, state: dict[str, Tensor], told: Told) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = {"history": (told.history, len(TERMS)), "looks": (told.looks, 2)}
        tensors = {name: torch.tensor(row, dtype=torch.float64).reshape(-1, n) for name, (row, n) in rows.items()}
        tensors |= {"looked_at": torch.tensor(told.looked_at)}
        write_atomic(self.state_file, lambda file: write_weights(state | tensors, file))

    def load_state(self) -> tuple[dict[str, Tensor], Told]:
        """Both empty where there is none. Raises MagiCaptureError for a damaged one."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.state_file.is_file():
            return {}, Told()
        try:
            # copies: what is mapped cannot be replaced on Windows, and the next state takes this one's place
            state = {key: value.clone() for key, value in load_file(self.state_file).items()}
            history = state.pop("history").reshape(-1, len(TERMS)).tolist()
            looks = state.pop("looks").reshape(-1, 2).tolist()
            return state, Told(history=history, looks=looks, looked_at=int(state.pop("looked_at")))
        except (SafetensorError, KeyError, RuntimeError, OverflowError, TypeError, ValueError) as error:
            raise MagiCaptureError(
                f"{self.state_file}: the saved state is damaged ({error}); delete it to train from the start"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside the block no other process does the same training, which would write over this one's state.

        Raises MagiCaptureError where one does it already. A process that is killed lets go.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"lock-{self.key[:16]}"
        try:
            with FileLock(path, timeout=0):
                try:
                    yield
                finally:
                    with suppress(OSError):  # Windows holds on to it, and filelock removes it there
                        path.unlink()
        except Timeout as error:
            raise MagiCaptureError(
                f"{self.folder.name}: the same training is running in another process; wait for it, or take another "
                "name"
            ) from error

    @property
    def result_file(self) -> Path:
        return self.folder / f"result-{self.key[:16]}.json"

    def save_result(self, result: Result) -> None:
        saved = {"key": result.key, "history": result.told.history, "looks": result.told.looks}
        saved |= {name: [str(file) for file in getattr(result, name)] for name in ("files", "best_files")}
        write_atomic(self.result_file, lambda file: file.write_text(json.dumps(saved), encoding="utf-8"))

    def find_result(self) -> Result | None:
        """The finished training, if all its files are still there."""
        result = _read_result(self.result_file)
        return result if result and result.key == self.key and not _missing(result) else None

    def classes(self, backbone: Backbone, config: TrainConfig) -> Path:
        """Folder of the untouched model's pictures of the class, for every run of the same model, nouns, seed and
        size."""
        settings = f"{config.seed} {config.resolution} {' '.join(class_nouns(config))}"
        return self.folder / f"class-{_hash(settings, weights(backbone))[:16]}"

    @property
    def _candidates(self) -> Path:
        return self.folder / f"candidates-{self.key[:16]}"

    def keep_candidate(self, step: int, save: Callable[[Path], object]) -> None:
        """A folder a step, until the run is over: whichever state a kill leaves, its best is there. save: into it."""
        folder = self._candidates / f"step-{step:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        save(folder)

    def find_candidate(self, step: int, load: Callable[[Path], Made]) -> Made | None:
        """None where it is gone or was never whole. load: from its main file."""
        files = sorted((self._candidates / f"step-{step:06d}").glob("*.safetensors"), key=lambda path: len(path.name))
        with suppress(MagiCaptureError):
            return load(files[0]) if files else None  # the others' names begin with its own

    def drop_work(self) -> None:
        """State and candidates, which only an unfinished run needs, and what a kill left half written of any file."""
        halves = [*self.folder.glob(f".*-{self.key[:16]}-*"), *self.samples.glob(".*"), *self.looks.glob(".*")]
        for path in (self.state_file, *halves):
            path.unlink(missing_ok=True)
        shutil.rmtree(self._candidates, ignore_errors=True)


OURS = r"\.?(state|candidates|samples|looks|class|result|lock)-[0-9a-f]{16}\b.*"  # in the folder of a name


def forget(folder: Path) -> list[Path]:
    """Deletes what trainings keep in the folder of their name -> what was deleted. The shared files lie elsewhere.

    Raises MagiCaptureError where nothing is kept. What is not a training's stays. No training of the name may be
    running: it would go on writing.
    """
    is_ours = folder.is_dir() and not folder.is_symlink()
    found = sorted(path for path in folder.iterdir() if re.fullmatch(OURS, path.name)) if is_ours else []
    if not found:
        raise MagiCaptureError(f"{folder}: nothing is kept there; --output is the folder that holds magicapture/NAME")
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return found


def missing_files(folder: Path) -> list[str]:
    """Files of finished trainings that are no longer there. A preview is none of them: it is made again from the
    sample, not trained."""
    results = map(_read_result, sorted(folder.glob("result-*.json")))
    return [str(file) for result in results if result for file in _missing(result)]


def _missing(result: Result) -> list[Path]:
    return [file for file in (*result.files, *result.best_files) if not file.is_file()]


def _read_result(path: Path) -> Result | None:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        files, best_files = ([Path(file) for file in saved[name]] for name in ("files", "best_files"))
        told = Told(history=saved["history"], looks=saved["looks"])
        return Result(key=saved["key"], files=files, told=told, best_files=best_files)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # none yet, or one that is not ours to read: training again is right


def result_key(
    backbone: Backbone,
    photos: Photos,
    config: TrainConfig,
    recogniser: Recogniser | Dino | None = None,
    watch: Watch | None = None,
    more: Sequence[Tensor] = (),
) -> str:
    """A hash of all that decides the result: pixels, masks, weights and settings; with a recogniser, landmarks too;
    with patience, when it is looked at. more: whatever else it is made of."""
    check_photos(photos, config)
    given = [photos[name] for name in config.concepts]
    tensors = [tensor for portraits in given for tensor in (portraits.images, portraits.masks)]
    tensors += weights(backbone)
    if backbone.taesd is not None:
        tensors += backbone.taesd.state_dict().values()
    unused = set() if config.clone_steps else {"clone_steps"}  # what was trained before there were any has no such word
    return key_of(config, [*tensors, *seen_by(recogniser, given), *more], watch, unused)


def key_of(config: RunConfig, tensors: Sequence[Tensor], watch: Watch | None, unused: Set[str] = frozenset()) -> str:
    """The hash of a training of any method. tensors: photos and weights, in an order of its own. unused: settings that
    are as if they were not there."""
    cost_alone = {"batch_size", "gradient_checkpointing"}
    settings = config.model_dump_json(exclude={*cost_alone, *unused})
    if watch is not None and watch.patience:
        settings += f" {watch.every} {watch.patience}"
    if watch is not None and watch.detector is not None:
        settings += " likeness"
    return _hash(f"{KEY_FORMAT} {settings}", tensors)


def seen_by(recogniser: Recogniser | Dino | None, given: Sequence[Portraits]) -> list[Tensor]:
    """Its weights, and the landmarks that frame the faces for it; nothing without one."""
    if recogniser is None:
        return []
    return [*recogniser.state_dict().values(), *(_landmarks(face) for portraits in given for face in portraits.faces)]


def _landmarks(face: Face) -> Tensor:
    return torch.full((5, 2), torch.nan) if face.landmarks is None else face.landmarks


def weights(backbone: Backbone) -> list[Tensor]:
    """Of all its parts."""
    parts = (backbone.unet, backbone.text_encoder, backbone.vae)
    return [weight for part in parts for weight in part.state_dict().values()]


def _hash(settings: str, tensors: Sequence[Tensor]) -> str:
    whole = hashlib.blake2b(settings.encode(), digest_size=16)
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter: 4 GB of weights take about a second
        for digest in pool.map(_digest, tensors):
            whole.update(digest)
    return whole.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    """Of shape and values; the same in whatever precision the same values are kept."""
    values = tensor.detach().cpu().float().contiguous()
    return hashlib.blake2b(values.numpy().data, digest_size=16, person=str(tuple(values.shape)).encode()[:16]).digest()
