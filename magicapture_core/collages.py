"""Clone face tuning, an optional last phase: a person's photos in slots of another picture, small faces and large.

In: framed photos. Out: items whose loss looks at the faces in the slots alone, and keeps each person's word on their
own faces. The canvas is a style's photo as it is: its face is one on which no person's word has any business. Drawn by
counted randomness, as all items are. Our reconstruction, inspired by MagicID (arXiv 2408.09248), of which no code is
public: its clone face tuning; and its multi-mode fusion, in which a ControlNet of skeletons and one of landmarks take
turns step by step, with a turn without one, in which the varying size alone, the zoom, is what is to be learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean as average
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .dataset import Batch, Control, Dataset, ItemKey, Mode, binary, posterior
from .diffusion import NUM_TIMESTEPS
from .images import resize
from .prompts import COLLAGES, fill
from .types import MagiCaptureError, side_of

if TYPE_CHECKING:
    from .config import TrainConfig
    from .types import Photos

MOST_SLOTS = 3
LEAST_SHARE = 0.25  # of the canvas that a face takes, as far as a slot has room; 1 is the most
MOST_MAGNIFIED = 2.0  # what is larger than that is a blur, which nobody is to look like

TOLD = 4  # the part of the steps whose mean is told, their first and their last
ALL_MODES: tuple[Mode, ...] = ("skeleton", "landmark", "zoom")

Controls = Mapping[Mode, Control]
Slot = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels


def slots(count: int, in_columns: bool, size: int) -> list[Slot]:
    """A square of `size` pixels in so many columns, or rows, that cover it."""
    edges = [round(size * index / count) for index in range(count + 1)]
    return [(low, 0, high, size) if in_columns else (0, low, size, high) for low, high in pairwise(edges)]


def box_of(mask: Tensor) -> Slot:
    """mask [1,H,W] -> the smallest box around what counts as face."""
    rows, columns = (mask[0] >= 0.5).any(1).nonzero(), (mask[0] >= 0.5).any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A photo [3,S,S] with its face mask [1,S,S], and where it goes: scale and at are 0..1 of what the slot allows."""

    image: Tensor
    mask: Tensor
    slot: Slot
    scale: float
    at: tuple[float, float]


def put(canvas: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
    """canvas [3,S,S] -> the same with the piece on it, and the mask [1,S,S] of its face.

    The whole face is inside the slot; of the rest of the photo what the slot has room for.
    """
    size = canvas.shape[-1]
    left, top, right, bottom = piece.slot
    x1, y1, x2, y2 = box_of(piece.mask)
    width, height = x2 - x1, y2 - y1
    most = min((right - left) / width, (bottom - top) / height, MOST_MAGNIFIED)
    least = min(LEAST_SHARE * size / max(width, height), most)
    side = max(int(size * (least + piece.scale * (most - least))), 1)  # never more than there is room for
    factor = side / size
    x = left + round(piece.at[0] * (right - left - width * factor) - x1 * factor)
    y = top + round(piece.at[1] * (bottom - top - height * factor) - y1 * factor)
    inside = slice(max(y, top), min(y + side, bottom)), slice(max(x, left), min(x + side, right))
    of_photo = slice(inside[0].start - y, inside[0].stop - y), slice(inside[1].start - x, inside[1].stop - x)
    made, mask = canvas.clone(), torch.zeros_like(canvas[:1])
    made[:, *inside] = resize(piece.image[None], (side, side))[0][:, *of_photo]
    mask[:, *inside] = resize(piece.mask[None], (side, side))[0][:, *of_photo]
    return made, mask


def compose(canvas: Tensor, pieces: Sequence[tuple[str, Piece]]) -> tuple[Tensor, dict[str, Tensor]]:
    """canvas [3,S,S], whose piece is in each slot -> the collage, and by person the mask [1,S,S] of all their faces.

    The masks are disjoint, as the slots are.
    """
    faces: dict[str, Tensor] = {}
    for person, piece in pieces:
        canvas, mask = put(canvas, piece)
        faces[person] = faces[person] + mask if person in faces else mask
    return canvas, faces


def modes(controls: Controls) -> list[Mode]:
    """In the order of their turns; zoom needs no ControlNet and is always there."""
    return [mode for mode in ALL_MODES if mode in controls or mode == "zoom"]


def told(history: Sequence[Sequence[float]], present: Sequence[Mode]) -> list[str]:
    """Rows of the phase's losses, as a run keeps them, and its modes -> a line for each, and one for the missing."""
    lines = []
    for turn, mode in enumerate(present[: len(history)]):
        rows = history[turn :: len(present)]
        part = max(len(rows) // TOLD, 1)
        first, last = ([average(values) for values in zip(*ends, strict=True)] for ends in (rows[:part], rows[-part:]))
        lines.append(
            f"clone phase, {mode}: {len(rows)} steps, reconstruction {first[0]:.4f} at first and {last[0]:.4f} at "
            f"last, attention {first[1]:.4f} and {last[1]:.4f}"
        )
    missing = [mode for mode in ALL_MODES if mode not in present]
    return [*lines, *([f"clone phase: no ControlNet for {' and '.join(missing)}"] if missing else [])]


def check_controls(controls: Controls, photos: Photos, config: TrainConfig) -> None:
    """Raises MagiCaptureError for ControlNets that no phase uses, and for pictures that are not those of the photos."""
    if controls and not config.clone_steps:
        raise MagiCaptureError("a ControlNet is for the clone phase: set clone_steps, or leave it out")
    for mode, control in controls.items():
        for name in (name for name in photos if side_of(name) == "subject"):
            given, wanted = control.pictures.get(name), photos[name].images.shape
            if given is None or given.shape != wanted:
                raise MagiCaptureError(f"{mode} pictures of {name}: give one for each photo, of {wanted[-1]} pixels")


def tensors(controls: Controls) -> list[Tensor]:
    """All that a run with them is made of."""
    held = [controls[mode] for mode in ALL_MODES if mode in controls]
    return [t for control in held for t in (*control.net.state_dict().values(), *control.pictures.values())]


def on_device(controls: Controls, unet: Any) -> Controls:
    """The nets, which do not learn, where the UNet is and in its precision."""
    return {
        mode: replace(control, net=nn.Module.to(control.net, unet.device, unet.dtype).eval().requires_grad_(False))
        for mode, control in controls.items()
    }


def draw_item(vae: Any, dataset: Dataset, config: TrainConfig, item: ItemKey) -> Batch:
    """One to three slots, who is in them, of which photos and how large, canvas, template, t, VAE sample and noise, all
    from the item's own generator. Returns a batch of one.

    Encoding it is a pass through the VAE for every item. Where more than one person is learned, half of the collages
    of several slots show two, each held to their own faces. Prompts name everybody once. The mode is the step's: what
    its ControlNet reads moves with the photos, on black.
    """
    generator = item.generator(config.seed)

    def choose(count: int) -> int:
        return int(torch.randint(count, (), generator=generator)) if count > 1 else 0

    def share() -> float:
        return float(torch.rand((), generator=generator))

    def mirrored(*tensors: Tensor) -> list[Tensor]:
        is_mirrored = config.flip and choose(2)
        return [(tensor.flip(-1) if is_mirrored else tensor).float().cpu() for tensor in tensors]

    people, styles = dataset.names("subject"), dataset.names("style")
    person, style = people[choose(len(people))], styles[choose(len(styles))]
    others = [name for name in people if name != person]
    known = [person, others[choose(len(others))]] if others else [person]
    places = slots(1 + choose(MOST_SLOTS), bool(choose(2)), config.resolution)
    shown = [person, known[-1], known[choose(len(known))]] if choose(2) else [person] * MOST_SLOTS
    backdrops = dataset.photos[style].images
    [canvas] = mirrored(backdrops[choose(len(backdrops))])
    present = modes(dataset.controls)
    mode = present[item.step % len(present)]
    pieces, hinted = [], []
    for name, slot in zip(shown, places, strict=False):
        photos, photo = dataset.photos[name], choose(len(dataset.photos[name]))
        pictures = [dataset.controls[mode].pictures[name][photo]] if mode in dataset.controls else []
        image, mask, *picture = mirrored(photos.images[photo], photos.masks[photo], *pictures)
        piece = Piece(image=image, mask=mask, slot=slot, scale=share(), at=(share(), share()))
        pieces.append((name, piece))
        hinted += [(name, replace(piece, image=image)) for image in picture]
    image, faces = compose(canvas, pieces)
    hint, _ = compose(torch.zeros_like(canvas), hinted)
    texts = COLLAGES["two" if len(faces) > 1 else "several" if len(pieces) > 1 else "one"]
    nouns = [config.noun(name) for name in known]
    template = texts[choose(len(texts))].replace("{noun}", nouns[0]).replace("{other_noun}", nouns[-1])
    words = [config.concepts[name].placeholder_token for name in (person, style, *known[1:])]
    timestep = choose(NUM_TIMESTEPS)
    mean, std = posterior(vae, image[None])
    latents = (mean + std * torch.randn(mean.shape, generator=generator)) * dataset.scaling_factor
    noise = torch.randn(mean.shape, generator=generator)
    regions = torch.stack([faces.get(name, torch.zeros_like(image[:1])) for name in known])[None]  # [1,K,1,S,S]
    (height, width), divisor = dataset.latent_size, config.loss.attention_downscale
    coarse = binary(regions, (height // divisor, width // divisor)).squeeze(2)
    return Batch(
        latents=latents,
        noise=noise,
        timesteps=torch.tensor([timestep]),
        prompts=[fill(template, *words[:2]).replace("{other}", words[-1])],
        words=[tuple(words)],
        loss_masks=binary(regions.sum(1, keepdim=True), (height, width)).squeeze(2),
        face_masks=coarse[:, :1],
        other_masks=coarse[:, 1:],
        landmarks=torch.full((1, 5, 2), torch.nan),
        target_embeds=[torch.empty(0, 0)],
        objects=[None],
        hints=hint[None] if hinted else torch.empty(1, 0, 0, 0),
        modes=[mode],
    )
