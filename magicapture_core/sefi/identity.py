"""An identity as a file to share: a few vectors, and beside it a plain embedding for tools that know no stages.

`save` and `load` are inverses. Files come from strangers: they are read as data, and each fault is one clear line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..artifact import PREVIEW, SUFFIX, File, check_name, read_file, write_new
from ..config import PLACEHOLDER_PATTERN
from ..metadata import IDENTITY as KIND
from ..metadata import check_format, check_width, modelspec, read_json, read_kind, write_format
from ..types import MagiCaptureError, Token
from .config import SLOT, fill_word

STAGES = "stages"  # the tensor's name
MAX_STAGES = 100
MAX_TEXT = 300  # characters of a sentence
PLAIN = "_sefi"  # behind the name of the plain embedding


@dataclass(frozen=True, kw_only=True, eq=False)
class SefiIdentity:
    """A learned identity.

    stages: [S,2,C] fp32, of each stage the word that the keys and the one that the values of cross-attention see;
    stage i rules the timesteps from 1000 i / S on, so that the first has the least noise. placeholder: how it is
    written in prompts. initializer: the plain word in whose place it stands. template: the training's sentence, with
    `{person}`. config: the SefiConfig as it was, for information. metadata: whatever else a file said.
    """

    name: str
    architecture: str
    placeholder: str
    initializer: str
    stages: Tensor
    template: str
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def token(self) -> Token:
        """The word, for `tokens.injected` and `Vocabulary`."""
        return Token(
            name="subject",
            placeholder=self.placeholder,
            initializer=self.initializer,
            vectors=self.stages.flatten(0, 1),
            num_stages=len(self.stages),
        )

    @property
    def plain(self) -> Tensor:
        """[1,C], the mean: the word where stages, keys and values cannot be told apart."""
        return self.stages.mean((0, 1))[None]


def save(identity: SefiIdentity, folder: Path, embeddings_folder: Path | None = None) -> tuple[Path, ...]:
    """NAME.safetensors into `folder`, NAME_sefi beside it or into its own; in this order.

    Where one of the names is taken both get the same number, and nothing is overwritten. Raises MagiCaptureError for a
    name or for vectors that cannot be shared.
    """
    check_name(identity.name)
    check_stages(identity.stages)

    def files(name: str) -> dict[Path, File]:
        title = f"{name}{PLAIN}"
        plain = modelspec(identity.architecture, "textual-inversion", title, identity.config)
        return {
            folder / f"{name}{SUFFIX}": ({STAGES: identity.stages.float()}, _metadata(replace(identity, name=name))),
            (embeddings_folder or folder) / f"{title}{SUFFIX}": ({identity.placeholder: identity.plain}, plain),
        }

    return write_new(identity.name, files)


def load(path: Path) -> SefiIdentity:
    """The identity of a file, named as the file is.

    Raises MagiCaptureError for a newer format, and for a file that is damaged or holds no identity.
    """
    path = Path(path)
    try:
        tensors, metadata = read_file(path)
        if read_kind(metadata) != KIND:
            raise MagiCaptureError("no identity made by MagiCapture: take a file that Train SeFi Identity wrote")
        check_format(metadata)
        told = read_json(metadata, "magicapture.identity", dict)
        words = {key: told.get(key) for key in ("placeholder", "initializer", "template")}
        if not all(isinstance(text, str) for text in words.values()) or not isinstance(tensors.get(STAGES), Tensor):
            raise MagiCaptureError(f"magicapture.identity is damaged: it lacks one of {', '.join((*words, STAGES))}")
        if not re.fullmatch(PLACEHOLDER_PATTERN, words["placeholder"]):
            raise MagiCaptureError(f"its word is written {words['placeholder'][:60]!r}, not like <person>")
        if words["template"].count(SLOT) != 1 or not all(map(is_one_line, words.values())):
            raise MagiCaptureError("its sentence or its plain word is damaged: a short line, with {person} once")
        identity = SefiIdentity(
            name=path.stem,
            architecture=metadata.get("modelspec.architecture", "").removesuffix(f"/{KIND}"),
            stages=check_stages(tensors[STAGES].float()),
            config=read_json(metadata, "magicapture.config", dict),
            **words,
        )
        check_width(identity.architecture, identity.stages.shape[2])
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{path.name}: {error}") from error
    own = _metadata(identity).keys()
    return replace(identity, metadata={key: value for key, value in metadata.items() if key not in own})


def is_identity(path: Path) -> bool:
    """Whether a file says that it holds one. Raises MagiCaptureError for one that cannot be read."""
    _, metadata = read_file(Path(path))
    return read_kind(metadata) == KIND


def inspect(path: Path) -> dict[str, Any]:
    """What the file of an identity holds, ready for JSON; vectors as counts."""
    path = Path(path)
    identity = load(path)
    _, metadata = read_file(path)
    beside = path.with_name(f"{path.stem}{PLAIN}{SUFFIX}")
    return {
        "name": identity.name,
        "kind": KIND,
        "bytes": path.stat().st_size,
        "architecture": identity.architecture,
        "licence": metadata.get("modelspec.license", ""),
        "preview": path.with_suffix(PREVIEW).name if path.with_suffix(PREVIEW).is_file() else "",
        "format": metadata["magicapture.format"],
        "library_version": metadata.get("magicapture.library_version", ""),
        "placeholder": identity.placeholder,
        "initializer": identity.initializer,
        "sentence": fill_word(identity.template, identity.placeholder),
        "stages": len(identity.stages),
        "vectors": identity.stages.shape[0] * identity.stages.shape[1],
        "keys_and_values_differ": bool((identity.stages[:, 0] != identity.stages[:, 1]).any()),
        "plain_embedding": beside.name if beside.is_file() else "",
        "config": identity.config,
        "other_fields": identity.metadata,
    }


def is_one_line(text: str) -> bool:
    """Whether a stranger's text may go to a terminal and into a prompt."""
    return text.isprintable() and 0 < len(text) <= MAX_TEXT


def check_stages(stages: Tensor) -> Tensor:
    """The same tensor. Raises MagiCaptureError unless it is [S,2,C] and finite."""
    if stages.ndim != 3 or not 1 <= len(stages) <= MAX_STAGES or stages.shape[1] != 2 or not stages.shape[2]:
        raise MagiCaptureError(f"its vectors have the shape {tuple(stages.shape)}, not 1 to {MAX_STAGES} stages of 2")
    if not stages.isfinite().all():
        raise MagiCaptureError("its vectors hold numbers that are not finite: the training went wrong")
    return stages


def _metadata(identity: SefiIdentity) -> dict[str, str]:
    told: Mapping[str, str] = {key: getattr(identity, key) for key in ("placeholder", "initializer", "template")}
    sentence = fill_word(identity.template, identity.placeholder)
    return {
        **identity.metadata,
        **write_format(),
        "magicapture.kind": KIND,
        "magicapture.identity": json.dumps(told),
        "magicapture.config": json.dumps(identity.config),
        **modelspec(identity.architecture, KIND, identity.name, identity.config),
        "modelspec.trigger_phrase": sentence,
    }
