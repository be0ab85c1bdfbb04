"""The border: ComfyUI's layouts on one side, the core's on the other, and the only place that knows both.

IMAGE is [B,H,W,C] 0..1 and MASK [B,H,W] in ComfyUI; the core has [B,3,H,W] and [B,1,H,W]. Both ways pictures end on the
CPU, wherever ComfyUI keeps them; what works on a card moves them there itself. Also here: the pack's own socket types,
the shims that keep one schema valid on every ComfyUI from 0.3.64 on, and settings made from pydantic.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import torch
from comfy_api.latest import io
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError

CATEGORY = "MagiCapture"
MAX_INT = 2**53 - 1  # the page's numbers are doubles
MAX_STRENGTH = 10.0  # of a LoRA, either way

ArtifactType = io.Custom("MAGICAPTURE")
SettingsType = io.Custom("MAGICAPTURE_SETTINGS")
FacesType = io.Custom("MAGICAPTURE_FACES")
FaceRecognitionType = io.Custom("FACE_RECOGNITION")
ObjectFeaturesType = io.Custom("OBJECT_FEATURES")
ConceptsType = io.Custom("MAGICAPTURE_CONCEPTS")
IdentityType = io.Custom("SEFI_IDENTITY")

SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(name: str, inputs: Iterable[Any], **fields: Any) -> io.Schema:
    """A Schema of our category called `NAME (MagiCapture)`; fields that this ComfyUI does not know are left out."""
    fields |= {"display_name": f"{name} (MagiCapture)", "category": CATEGORY, "inputs": [*map(labelled, inputs)]}
    return io.Schema(**{key: value for key, value in fields.items() if key in SCHEMA_FIELDS})


def labelled(socket: Any) -> Any:
    """What the page writes beside it: the id, with spaces."""
    socket.display_name = socket.id.replace("_", " ")
    return socket


def advanced(socket: Any) -> Any:
    """Folds a widget away where the page can; as a keyword of Input 0.3.64 refuses it."""
    socket.extra_dict = {**socket.extra_dict, "advanced": True}
    return socket


def checkpoint_inputs(optional: bool = False, **tooltips: str) -> list[Any]:
    """The sockets `model`, `clip` and `vae`, as many as there are tooltips, in their order."""
    kinds = {"model": io.Model, "clip": io.Clip, "vae": io.Vae}
    return [kinds[name].Input(name, optional=optional, tooltip=tooltip) for name, tooltip in tooltips.items()]


def strength_input(name: str, tooltip: str, optional: bool = False) -> Any:
    bounds = {"min": -MAX_STRENGTH, "max": MAX_STRENGTH, "step": 0.05}
    return io.Float.Input(name, default=1.0, **bounds, tooltip=tooltip, optional=optional)


def text_input(name: str, default: str, tooltip: str, optional: bool = False) -> Any:
    """Several lines of prompt, taken as they are: braces in them are learned words."""
    return io.String.Input(
        name, default=default, multiline=True, dynamic_prompts=False, tooltip=tooltip, optional=optional
    )


def show(report: str, images: Tensor | None = None, cls: Any = None) -> dict[str, Any]:
    """What the page shows on the node: a text, and a row of pictures [N,3,H,W] where given."""
    from comfy_api.latest import ui

    shown: dict[str, Any] = {"text": (report,)}
    if images is not None and len(images):
        shown["images"] = ui.PreviewImage(to_comfy(images), cls=cls).as_dict()["images"]
    return shown


def single(lists: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The node's inputs as ComfyUI hands lists over -> one value each, and all batches of `reference`.

    For Load Photos gives photos one by one: as plain inputs they would be so many samplings. Raises MagiCaptureError
    where anything else comes as a list.
    """
    values = dict(lists)
    reference = values.pop("reference", None)
    for name, found in values.items():
        if len(found) > 1 and name != "control_image":
            raise MagiCaptureError(f"{name}: it is a list of {len(found)}; connect a single one")
    return {name: found[0] for name, found in values.items()} | {"reference": reference}


def to_core(images: Tensor) -> Tensor:
    """IMAGE [B,H,W,C], C 1, 3 or 4, any dtype and device -> a fresh [B,3,H,W] float32 copy on the CPU that autograd
    may use."""
    images = images.detach().to("cpu", torch.float32)
    if images.shape[-1] == 1:
        images = images.expand(-1, -1, -1, 3)
    return images[..., :3].movedim(-1, 1).clamp(0, 1).clone(memory_format=torch.contiguous_format)


def to_comfy(images: Tensor) -> Tensor:
    """[B,3,H,W] -> IMAGE [B,H,W,3] on the CPU."""
    return images.detach().float().clamp(0, 1).movedim(1, -1).cpu().contiguous()


def masks_to_core(masks: Tensor) -> Tensor:
    """MASK [B,H,W] or [H,W], any dtype and device -> a fresh [B,1,H,W] float32 copy on the CPU."""
    masks = masks.detach().to("cpu", torch.float32)
    return masks.reshape(-1, 1, *masks.shape[-2:]).clamp(0, 1).clone()


def masks_to_comfy(masks: Tensor) -> Tensor:
    """[B,1,H,W] -> MASK [B,H,W] on the CPU."""
    return masks.detach().float().clamp(0, 1)[:, 0].cpu().contiguous()


# -- settings: pydantic fields <-> widgets ------------------------------------------------------------------------


def leaves(model: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    """Every knob below a settings model: its path, its field, and its value here, which is the default.

    Tuples of models are none, the words of further people and styles: these come with their photos.
    """
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        elif not (isinstance(value, tuple) and all(isinstance(item, BaseModel) for item in value)):
            yield (*path, name), field, value


def widget_id(path: tuple[str, ...]) -> str:
    """("inversion", "num_steps") -> inversion_num_steps, ("lora", "lora_rank") -> lora_rank."""
    *groups, name = path
    return name if groups and name.startswith(f"{groups[-1]}_") else "_".join(path)


def settings_sockets(model: BaseModel, order: Mapping[str, bool], later: Collection[str] = ()) -> list[Any]:
    """One widget per knob: description = tooltip, bounds = bounds, value = default.

    order: widget id -> whether it is folded away, for every knob, in the order of the widgets. It is written out by
    hand because saved workflows hold values by position: a new knob goes to its end, wherever it stands in the model.
    later: those that came after a release, the last ones. They are optional: saved prompts do not name them.
    """
    sockets = {widget_id(path): _socket(widget_id(path), field, value) for path, field, value in leaves(model)}
    for name in later:
        sockets[name].optional = True
    return [advanced(sockets[name]) if folded else sockets[name] for name, folded in order.items()]


def settings_values(model: BaseModel, widgets: dict[str, Any]) -> dict[str, Any]:
    """The inverse: widget values by id -> the nested dictionary that the model validates.

    A widget that a saved prompt does not name has its value in `model`.
    """
    nested: dict[str, Any] = {}
    for path, field, default in leaves(model):
        *groups, name = path
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        value = widgets.get(widget_id(path), default)
        is_words = get_origin(field.annotation) is tuple and isinstance(value, str)
        place[name] = tuple(value.split(SEPARATOR)) if is_words else value
    return nested


SEPARATOR = ", "


def _socket(name: str, field: FieldInfo, default: Any) -> Any:
    about = {"tooltip": field.description}
    kind = field.annotation
    if kind is bool:
        return io.Boolean.Input(name, default=default, **about)
    if kind is int:
        # control_after_generate must be an explicit False: the page gives every `seed` a dice that would train anew
        return io.Int.Input(name, default=default, control_after_generate=False, **_bounds(field, 1), **about)
    if kind is float:
        return io.Float.Input(name, default=default, **_bounds(field, _step(default)), **about)
    if kind is str:
        return io.String.Input(name, default=default, **about)
    if get_origin(kind) is Literal:
        return io.Combo.Input(name, options=list(get_args(kind)), default=default, **about)
    if get_origin(kind) is tuple:  # of words: every choice that is not empty, the whole first
        words = get_args(get_args(kind)[0])
        choices = [SEPARATOR.join(c) for n in range(len(words), 0, -1) for c in itertools.combinations(words, n)]
        return io.Combo.Input(name, options=choices, default=SEPARATOR.join(default), **about)
    raise TypeError(f"no widget for {name}: {kind}")


def _step(default: float) -> float:
    """Two digits of the default: 5e-4 moves by 1e-5."""
    return 10.0 ** (math.floor(math.log10(abs(default))) - 1) if default else 0.01


def _bounds(field: FieldInfo, step: float) -> dict[str, Any]:
    """Bounds of a field as the widget wants them: inclusive, and whole numbers that a page can hold."""
    found = {key: value for rule in field.metadata for key, value in _rule(rule)}
    step = found.get("multiple_of", step)
    low = found["ge"] if "ge" in found else found["gt"] + step
    high = found["le"] if "le" in found else found["lt"] - step
    return {"min": low, "max": min(high, MAX_INT) if isinstance(high, int) else high, "step": step}


def _rule(rule: Any) -> Iterator[tuple[str, Any]]:
    for key in ("ge", "gt", "le", "lt", "multiple_of"):
        if hasattr(rule, key):
            yield key, getattr(rule, key)
