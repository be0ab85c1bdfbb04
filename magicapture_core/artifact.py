"""What a training leaves behind, as files to share: the LoRA with its learned words inside, and an embedding per word.

`save` and `load` are inverses. One file is complete for us; with the embeddings it is complete for stock tools too.
Files come from strangers: they are read as data, and each fault is one clear line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from .files import check_plain, place, write_weights, written_beside
from .kohya import TEXT_ENCODER, read_layers
from .metadata import (
    IDENTITY,
    Content,
    check_tokens,
    check_vectors,
    modelspec,
    network_fields,
    read_architecture,
    read_content,
    read_kind,
    training_fields,
    word_fields,
    write_content,
)
from .prompts import COMPOSED_PROMPT, SLOT, templates
from .types import MagiCaptureError, Side, Token, concept_name

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
NAME_LENGTH = 64
DEVICES = ("CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)))  # of Windows
SUFFIX = ".safetensors"
PREVIEW = ".preview.png"  # all tools know it, and in a folder of embeddings A1111 takes other pictures for one
NOTES = ".json"
File = tuple[Mapping[str, Tensor], dict[str, str]]  # tensors and metadata


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """A trained LoRA and its learned words.

    lora: kohya's names -> fp16 on the CPU. config: the TrainConfig as it was, for information. templates: task -> the
    prompts of the training. rank_split: concept -> its share of the rank; empty while all concepts share it.
    metadata: whatever else a file said; it is kept when the artifact is saved again.
    """

    name: str
    architecture: str
    tokens: tuple[Token, ...]
    lora: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, list[str]] = field(default_factory=dict)
    rank_split: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def composed_prompt(self) -> str:
        """The first composed sentence of its training; the paper's where the file tells none."""
        return next(iter(self.templates.get("composed", ())), COMPOSED_PROMPT)


def check_name(name: str) -> str:
    """The same name. Raises MagiCaptureError when it cannot be a file's name everywhere."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise MagiCaptureError(
            f"name {name!r}: take 1 to {NAME_LENGTH} letters without accents, digits, - and _, "
            "the first one a letter or a digit"
        )
    if name.upper() in DEVICES:
        raise MagiCaptureError(f"name {name!r}: Windows takes it for a device; take another")
    return name


# -- save --------------------------------------------------------------------------------------------------------------


def save(artifact: Artifact, folder: Path, embeddings_folder: Path | None = None) -> tuple[Path, ...]:
    """NAME.safetensors into `folder`, NAME_subject, NAME_style and so on beside it or into their own; in this order.

    Where one of the names is taken all get the same number, NAME_2 and so on; nothing is overwritten. The LoRA
    gets its place last. Raises MagiCaptureError for a name or for weights that cannot be shared.
    """
    check_name(artifact.name)
    check_tokens(artifact.tokens)
    lora = {key: _half(key, value) for key, value in artifact.lora.items()}
    layers = read_layers(lora)
    embeddings = embeddings_folder or folder

    def files(name: str) -> dict[Path, File]:
        named = replace(artifact, name=name)
        metadata = artifact.metadata | _own_metadata(named, layers)
        return {folder / f"{name}{SUFFIX}": (lora, metadata), **_embedding_files(named, embeddings)}

    return write_new(artifact.name, files)


def unpack(path: Path, folder: Path) -> tuple[Path, ...]:
    """The embeddings inside a LoRA file, as files of their own. Nothing is overwritten."""
    artifact = load(path)
    return write_new(plain_name(artifact), lambda name: _embedding_files(replace(artifact, name=name), folder))


def plain_name(artifact: Artifact) -> str:
    """Its file's name, which may be a stranger's, made one that a file can have everywhere."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", artifact.name)[:NAME_LENGTH]


def write_new(name: str, files: Callable[[str], dict[Path, File]]) -> tuple[Path, ...]:
    """Under the name, or the first NAME_2, NAME_3, ... where none of its files is there: all of them or none.

    Nor a preview picture or a WebUI's notes, which would then be taken for the new file's. Each is whole before the
    first gets its place, so that a kill leaves no half of one.
    """
    names = _numbered(name)
    while True:
        contents = files(next(names))
        if any(place.exists() for path in contents for place in (path, *companions(path))):
            continue
        with ExitStack() as stack:
            whole = {path: stack.enter_context(_written(path, *file)) for path, file in contents.items()}
            if _place_all(whole):
                return tuple(contents)


def companions(path: Path) -> tuple[Path, Path]:
    """What tools look for beside a file of weights: a preview picture, and A1111's notes."""
    return path.with_suffix(PREVIEW), path.with_suffix(NOTES)


def _numbered(name: str) -> Iterator[str]:
    for number in count(1):
        ending = f"_{number}" if number > 1 else ""
        yield name[: NAME_LENGTH - len(ending)] + ending


def _place_all(whole: Mapping[Path, Path]) -> bool:
    """Place -> file beside it; the first is placed last. False where another run has just taken one of the places."""
    placed: list[Path] = []
    try:
        for path, beside in reversed(list(whole.items())):
            place(beside, path)
            placed.append(path)
    except BaseException as error:
        for path in placed:
            path.unlink()
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def _own_metadata(artifact: Artifact, layers: Mapping[str, Any]) -> dict[str, str]:
    words = embedding_names(artifact, "embedding:{}")
    content = Content(
        tokens=artifact.tokens, config=artifact.config, templates=artifact.templates, rank_split=artifact.rank_split
    )
    return {
        **write_content(content),
        **modelspec(artifact.architecture, "lora", artifact.name, artifact.config),
        **word_fields(list(words.values()), sentence(artifact, words)),
        **training_fields(artifact.config),
        **network_fields(
            artifact.architecture,
            artifact.name,
            {len(layer.down) for layer in layers.values()},
            {layer.alpha for layer in layers.values()},
        ),
    }


def _embedding_files(artifact: Artifact, folder: Path) -> dict[Path, File]:
    """One tensor under the placeholder: what ComfyUI, A1111 and diffusers read as a textual inversion."""
    names = embedding_names(artifact)
    return {
        folder / f"{names[token.name]}{SUFFIX}": (
            {token.placeholder: token.vectors},
            modelspec(artifact.architecture, "textual-inversion", names[token.name], artifact.config),
        )
        for token in artifact.tokens
    }


def embedding_names(artifact: Artifact, spelling: str = "{}") -> dict[str, str]:
    """Concept -> its embedding as prompts name it: A1111's plain, ComfyUI's `embedding:{}`."""
    return {token.name: spelling.format(f"{artifact.name}_{token.name}") for token in artifact.tokens}


def sentence(artifact: Artifact, words: Mapping[str, str]) -> str:
    """The first sentence of its training of which it has all words, with these in their places; else the words alone.

    words: concept -> how it is written.
    """
    told = {**templates(), **artifact.templates}
    texts = [text for task in ("composed", "reference", "source") for text in told[task]]
    known = (text for text in texts if set(re.findall(SLOT, text)) <= words.keys())
    return re.sub(SLOT, lambda slot: words[slot[1]], next(known, ", ".join(words.values())))


def _written(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> AbstractContextManager[Path]:
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return written_beside(path, lambda file: write_weights(plain, file, metadata))


# -- load --------------------------------------------------------------------------------------------------------------


def load(path: Path, embeddings_folders: Sequence[Path] = ()) -> Artifact:
    """The artifact of a file, named as the file is.

    Where another tool dropped the learned words, the embeddings beside the file or in one of the folders are taken.
    Raises MagiCaptureError for a newer format, and for a file that is damaged or no LoRA of MagiCapture.
    """
    path = Path(path)
    try:
        tensors, metadata = read_file(path)
        if read_kind(metadata) == IDENTITY:
            raise MagiCaptureError("this is an identity: load it with Load SeFi Identity (--identity on the terminal)")
        content = read_content(metadata) or _content_beside(path, embeddings_folders)
        lora = {key: _half(key, value) for key, value in tensors.items()}
        layers = read_layers(lora)
        artifact = Artifact(
            name=path.stem,
            architecture=read_architecture(metadata, content.tokens),
            tokens=content.tokens,
            lora=lora,
            config=content.config,
            templates=content.templates,
            rank_split=content.rank_split,
        )
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{path.name}: {error}") from error
    own = _own_metadata(artifact, layers).keys()
    return replace(artifact, metadata={key: value for key, value in metadata.items() if key not in own})


def inspect(path: Path) -> dict[str, Any]:
    """What a file holds, ready for JSON; weights as counts."""
    path = Path(path)
    artifact = load(path)
    _, metadata = read_file(path)
    layers = read_layers(artifact.lora)
    return {
        "name": artifact.name,
        "bytes": path.stat().st_size,
        "architecture": artifact.architecture,
        "base_model": metadata.get("ss_base_model_version", ""),
        "licence": metadata.get("modelspec.license", ""),
        "preview": path.with_suffix(PREVIEW).name if path.with_suffix(PREVIEW).is_file() else "",
        "format": metadata.get("magicapture.format", "dropped by another tool"),
        "library_version": metadata.get("magicapture.library_version", ""),
        "tokens": [
            {
                "name": token.name,
                "placeholder": token.placeholder,
                "initializer": token.initializer,
                "num_vectors": len(token.vectors),
            }
            for token in artifact.tokens
        ],
        "sentence": sentence(artifact, embedding_names(artifact, "embedding:{}")),
        "sentence_in_a1111": sentence(artifact, embedding_names(artifact)),
        "lora_rank": sorted({len(layer.down) for layer in layers.values()}),
        "lora_alpha": sorted({layer.alpha for layer in layers.values()}),
        "layers": _count_kinds(layers),
        "rank_split": artifact.rank_split,
        "config": artifact.config,
        "templates": artifact.templates,
        "training": training_fields(artifact.config),
        "other_fields": artifact.metadata,
    }


def _count_kinds(names: Mapping[str, Any]) -> dict[str, int]:
    """Layer names -> how many are cross-attention, self-attention, feed-forward, of the text encoder."""
    marks = {"text encoder": f"{TEXT_ENCODER}_", "cross-attention": "_attn2_", "self-attention": "_attn1_"}
    marks |= {"feed-forward": "_ff_", "other": ""}
    kinds = [next(kind for kind, mark in marks.items() if mark in name) for name in names]
    return {kind: kinds.count(kind) for kind in marks if kind in kinds}


def _content_beside(path: Path, folders: Sequence[Path]) -> Content:
    """The learned words of a file that has lost them, out of the embedding files of the same name."""
    found = _embeddings_of(path.stem, (path.parent, *folders))
    missing = [f"{path.stem}_{side}{SUFFIX}" for side in get_args(Side) if side not in found]
    if missing:
        raise MagiCaptureError(
            "no LoRA made by MagiCapture, or another tool dropped its learned words: then put "
            f"{' and '.join(missing)} beside it or into the embeddings folder"
        )
    tokens = [read_embedding(file, concept) for concept, file in found.items()]
    return Content(tokens=check_tokens(tokens), config={}, templates={}, rank_split={})


def _embeddings_of(name: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Concept -> its embedding file in the first folder that has it; of each side up to the first that none has."""
    found: dict[str, Path] = {}
    for side in get_args(Side):
        for number in count(1):
            concept = concept_name(side, number)
            places = (folder / f"{name}_{concept}{SUFFIX}" for folder in folders)
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                break
            found[concept] = file
    return found


def read_embedding(path: Path, name: str) -> Token:
    """An embedding file of one word. Raises MagiCaptureError when it holds anything else."""
    tensors, _ = read_file(path)
    if len(tensors) != 1:
        raise MagiCaptureError(f"{path.name} holds {len(tensors)} tensors, an embedding has one")
    ((placeholder, vectors),) = tensors.items()
    vectors = vectors.float()
    check_vectors(vectors)
    return Token(name=name, placeholder=placeholder, initializer="", vectors=vectors)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises MagiCaptureError for one that is not there, or not whole."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MagiCaptureError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            # copies: a file that is mapped cannot be deleted on Windows
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:  # the last three: a shape beyond torch's
        raise MagiCaptureError(f"not a whole safetensors file ({error}): get it again") from error
    for key, tensor in tensors.items():
        check_plain(key, tensor)
    return tensors, metadata


def _half(key: str, value: Tensor) -> Tensor:
    """Contiguous fp16; other tools may have kept another precision, and a shape of [1] for a 0-dim alpha."""
    half = value.to(torch.float16).contiguous()
    if not half.isfinite().all():
        raise MagiCaptureError(f"{key} holds numbers that are not finite in fp16: the training went wrong")
    return half.reshape(()) if key.endswith(".alpha") and half.numel() == 1 else half
