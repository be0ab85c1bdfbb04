"""Photos become latents once; every training item is drawn from them anew, by counted randomness.

In: a backbone and framed portraits. Out: `Dataset`, and from it a `Batch` for any step. An item's draws depend on
(seed, phase, step, item) alone, on the CPU: resuming needs no random state, and any split of a step into forward
passes draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import TrainConfig
from .diffusion import NUM_TIMESTEPS
from .dino import Dino
from .identity import Likeness, Recogniser
from .object_terms import ObjectLooks, ObjectTarget
from .prompts import fill, templates
from .types import MagiCaptureError, Photos, Portraits, Side, Task, side_of

if TYPE_CHECKING:
    from .backbone import Backbone


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPortraits:
    """The photos of one concept in latent space. The leading 2 is the mirror: 0 as it is, 1 flipped.

    mean, std: [2,N,C,h,w] of the VAE's posterior, unscaled; [1,N,C,h,w] where nothing is ever flipped. face_masks:
    [2,N,1,h,w], attention_masks: [2,N,1,h',w'], binary, 1 = face, by area average (h' = h / attention_downscale).
    landmarks: [2,N,5,2] in pixels, NaN where unknown.
    """

    mean: Tensor
    std: Tensor
    face_masks: Tensor
    attention_masks: Tensor
    landmarks: Tensor


Mode = Literal["skeleton", "landmark", "zoom"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """What a collage is conditioned on. net: a ControlNet as diffusers has it. pictures: by person, what the net reads
    of each framed photo, [N,3,S,S] in 0..1, on black."""

    net: Any
    pictures: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ItemKey:
    """The address of one item in a run."""

    phase: str
    step: int
    group: int
    task: Task

    def generator(self, seed: int) -> torch.Generator:
        text = f"{seed}/{self.phase}/{self.step}/{self.group}/{self.task}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Items of one forward pass.

    latents, noise: [B,C,h,w], scaled as the UNet wants them. timesteps: [B]. prompts: B strings with placeholders.
    words: of each item, the learned words of its person, its style and, in a collage, another person, whether its
    prompt holds them or not.
    loss_masks: [B,1,h,w], where the reconstruction counts. face_masks: [B,1,h',w'] at the attention maps' size: the
    subject token's region; the style token's is the rest. other_masks: [B,1,h',w'], the region of another person's
    token, or [B,0,h',w'] where there is none. landmarks: [B,5,2] in pixels where the subject's face is to
    appear, NaN where the identity term does not apply. target_embeds: B times [M,D], whose nearest it is to resemble.
    objects: the same for things other than faces, B targets, None where the term does not apply. hints: [B,3,H,W],
    what a ControlNet reads, or [B,0,H,W] where there is none. modes: which one, of all items the same.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    words: list[tuple[str, ...]]
    loss_masks: Tensor
    face_masks: Tensor
    other_masks: Tensor
    landmarks: Tensor
    target_embeds: list[Tensor]
    objects: list[ObjectTarget | None]
    hints: Tensor
    modes: list[Mode]

    @property
    def identity_items(self) -> list[int]:
        """Indices of the items to which the identity term applies."""
        has_face = (~self.landmarks.isnan().flatten(1).any(1)).tolist()
        return [i for i, target in enumerate(self.objects) if has_face[i] or target is not None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """All people and styles, encoded, ready to draw from. concepts: by name.

    likeness: None without a recogniser. looks: None without DINO. Without either there is no identity term. classes:
    by noun, what the untouched model shows of it; empty where it is not asked. photos: what was encoded, for collages;
    empty where there are none. controls: what those are conditioned on.
    """

    concepts: Mapping[str, EncodedPortraits]
    scaling_factor: float
    likeness: Likeness | None = None
    looks: ObjectLooks | None = None
    classes: Mapping[str, EncodedPortraits] = field(default_factory=dict)
    photos: Photos = field(default_factory=dict)
    controls: Mapping[Mode, Control] = field(default_factory=dict)

    @property
    def latent_size(self) -> tuple[int, int]:
        mean = next(iter(self.concepts.values())).mean
        return mean.shape[-2], mean.shape[-1]

    def names(self, side: Side) -> list[str]:
        """The people, or the styles, in order."""
        return [name for name in self.concepts if side_of(name) == side]

    def draw(self, config: TrainConfig, items: Sequence[ItemKey]) -> Batch:
        """The items of one forward pass, each drawn by itself."""
        return join([self.draw_item(config, item) for item in items])

    def draw_item(self, config: TrainConfig, item: ItemKey) -> Batch:
        """Person, style, photo, mirror, template, t ~ U, VAE sample and noise, all from the item's own generator.

        Returns a batch of one. A source item is a subject photo and counts inside the face (Eq. 4). Reference and
        composed items are style photos and count outside it (Eq. 5 and 6): under the composed prompt the style photo is
        the pseudo label. So there its landmarks say where the subject's face is to appear (Eq. 7), if t is below
        identity_max_timestep, and the subject's photos say whose it is. Not in phase 1, which has no such term (Eq. 9).
        An object's reference items count everywhere (the paper's supplement), and its composed items alone are asked
        for a likeness. Items of the class are the untouched model's own pictures and count everywhere.
        """
        generator = item.generator(config.seed)

        def choose(count: int) -> int:
            return int(torch.randint(count, (), generator=generator)) if count > 1 else 0

        people, styles = self.names("subject"), self.names("style")
        person, style = people[choose(len(people))], styles[choose(len(styles))]
        noun = config.noun(person)
        side = self.classes[noun] if item.task == "class" else self.concepts[person if item.task == "source" else style]
        photo, mirrored = choose(side.mean.shape[1]), choose(2) if config.flip else 0
        texts = templates(noun)[item.task]
        template = texts[choose(len(texts))]
        timestep = choose(NUM_TIMESTEPS)
        mean, std = side.mean[mirrored, photo], side.std[mirrored, photo]
        latents = (mean + std * torch.randn(mean.shape, generator=generator)) * self.scaling_factor
        noise = torch.randn(mean.shape, generator=generator)
        set_apart = 0 if config.kind == "object" and item.task == "reference" else 1
        face = side.face_masks[mirrored, photo] * set_apart
        how = config.loss.identity_target
        targets = self.likeness.targets(person, how, choose) if self.likeness else torch.empty(0, 0)
        words = config.concepts[person].placeholder_token, config.concepts[style].placeholder_token
        loss = config.loss
        can_resemble = item.phase == "tuning" and item.task in loss.identity_tasks and len(targets) > 0
        is_asked = can_resemble and loss.identity_weight > 0 and timestep < loss.identity_max_timestep
        landmarks = side.landmarks[mirrored, photo] if is_asked else torch.full((5, 2), torch.nan)
        target = None
        if self.looks is not None and asks_for_object(config, item, timestep):
            target = self.looks.target(person, style, mirrored, photo, choose)
        return Batch(
            latents=latents[None],
            noise=noise[None],
            timesteps=torch.tensor([timestep]),
            prompts=[fill(template, *words)],
            words=[words],
            loss_masks=(face if item.task in ("source", "class") else 1 - face)[None],
            face_masks=side.attention_masks[mirrored, photo][None] * set_apart,
            other_masks=torch.empty(1, 0, *side.attention_masks.shape[-2:]),
            landmarks=landmarks[None],
            target_embeds=[targets],
            objects=[target],
            hints=torch.empty(1, 0, 0, 0),
            modes=["zoom"],
        )


def asks_for_object(config: TrainConfig, item: ItemKey, timestep: int) -> bool:
    """Whether the object loss applies to an item: a composed one of phase 2, with less noise than the limit."""
    is_composed = item.phase == "tuning" and item.task == "composed"
    return is_composed and config.loss.object_weight > 0 and timestep < config.loss.identity_max_timestep


def join(batches: Sequence[Batch]) -> Batch:
    """One after the other."""

    def joined(name: str) -> Any:
        values = [getattr(batch, name) for batch in batches]
        return torch.cat(values) if isinstance(values[0], Tensor) else [*chain.from_iterable(values)]

    return Batch(**{field.name: joined(field.name) for field in fields(Batch)})


def encode(
    backbone: Backbone,
    photos: Photos,
    config: TrainConfig,
    recogniser: Recogniser | Dino | None = None,
) -> Dataset:
    """All photos through the VAE, as they are and mirrored; with a recogniser, the people's faces through that; with
    DINO, all objects through that.

    Raises MagiCaptureError as `check_photos` does, for a photo whose mask leaves nothing to learn from, and for a
    network that is for another kind of subject.
    """
    check_photos(photos, config)
    check_kind(config, recogniser)
    likeness = looks = None
    if isinstance(recogniser, Dino):
        looks = ObjectLooks.of(recogniser, photos, backbone.vae.device)
    elif recogniser is not None:
        people = {name: portraits for name, portraits in photos.items() if side_of(name) == "subject"}
        likeness = Likeness.of(recogniser, people, backbone.vae.device)
    concepts = {name: _encode(backbone, photos[name], config) for name in config.concepts}
    for name, encoded in concepts.items():
        _check_areas(name, encoded.face_masks, "face" if config.kind == "person" else "object")
    return Dataset(
        concepts=concepts,
        scaling_factor=backbone.vae.config.scaling_factor,
        likeness=likeness,
        looks=looks,
        photos=photos if config.clone_steps else {},
    )


def with_classes(dataset: Dataset, backbone: Backbone, classes: Photos, config: TrainConfig) -> Dataset:
    """The same with the pictures of `class_images`, by noun."""
    return replace(dataset, classes={noun: _encode(backbone, made, config) for noun, made in classes.items()})


def check_photos(photos: Photos, config: TrainConfig) -> None:
    """Raises MagiCaptureError when a concept has no photo, photos have no word, or a word has no photos."""
    if photos.keys() != config.concepts.keys():
        raise MagiCaptureError(
            f"photos are given of {', '.join(photos)}, and the settings have words for {', '.join(config.concepts)}: "
            "make them the same"
        )
    for name, portraits in photos.items():
        if not len(portraits):
            raise MagiCaptureError(f"no {name} photo is left: give at least one photo with a face or a mask")


def check_kind(config: TrainConfig, recogniser: Recogniser | Dino | None) -> None:
    """Raises MagiCaptureError for a network that cannot tell the likeness of this kind of subject."""
    if recogniser is not None and isinstance(recogniser, Dino) != (config.kind == "object"):
        raise MagiCaptureError(
            "kind is person, and object features know no faces: take a face recogniser, or set kind to object"
            if config.kind == "person"
            else "kind is object, and a face recogniser knows faces alone: take object features, or set kind to person"
        )


def _check_areas(name: str, face_masks: Tensor, what: str) -> None:
    """face_masks [2,N,1,h,w]. Raises MagiCaptureError for a photo that would teach nothing: none of it counts."""
    is_style = side_of(name) == "style"
    fault = f"nothing but {what}" if is_style else f"no {what}, or one smaller than a latent cell"
    for photo, area in enumerate(1 - face_masks[0] if is_style else face_masks[0], 1):
        if not area.any():
            raise MagiCaptureError(f"{name} photo {photo}: its mask holds {fault}; correct the mask or leave it out")


@torch.no_grad()
def posterior(vae: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """image [1,3,H,W] -> mean and std of the VAE's posterior, [1,C,h,w] each, unscaled, on the CPU."""
    latents = vae.encode(image.to(vae.device, vae.dtype) * 2 - 1).latent_dist
    return latents.mean.float().cpu(), latents.std.float().cpu()


def encode_images(vae: Any, images: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
    """images [N,3,H,W] -> mean and std of the VAE's posterior, [1,N,C,h,w] each, unscaled, as they are; with `flip`
    [2,N,C,h,w], the second flipped."""
    mean: list[Tensor] = []
    std: list[Tensor] = []
    for mirrored in (False, True)[: 1 + flip]:
        for image in images.split(1):  # one at a time: a full-size encode is the run's largest tensor
            for part, values in zip((mean, std), posterior(vae, image.flip(-1) if mirrored else image), strict=True):
                part.append(values)
    return torch.cat(mean).unflatten(0, (1 + flip, -1)), torch.cat(std).unflatten(0, (1 + flip, -1))


def _encode(backbone: Backbone, portraits: Portraits, config: TrainConfig) -> EncodedPortraits:
    mean, std = encode_images(backbone.vae, portraits.images, config.flip)
    size = (mean.shape[-2], mean.shape[-1])
    divisor = config.loss.attention_downscale
    masks = torch.stack([portraits.masks, portraits.masks.flip(-1)]).float().cpu()
    return EncodedPortraits(
        mean=mean,
        std=std,
        face_masks=binary(masks, size),
        attention_masks=binary(masks, (size[0] // divisor, size[1] // divisor)),
        landmarks=_landmarks(portraits),
    )


def _landmarks(portraits: Portraits) -> Tensor:
    """[2,N,5,2], as they are and mirrored: what was the left eye is then the right one."""
    landmarks = torch.full((2, len(portraits), 5, 2), torch.nan)
    width = portraits.images.shape[-1]
    for index, face in enumerate(portraits.faces):
        if face.landmarks is not None:
            landmarks[0, index] = face.landmarks
            landmarks[1, index] = face.landmarks[[1, 0, 2, 4, 3]] * torch.tensor([-1, 1]) + torch.tensor([width, 0])
    return landmarks


def binary(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """[2,N,1,H,W] -> [2,N,1,h,w] in {0,1}: a cell counts where the mask covers half of it."""
    average = F.interpolate(masks.flatten(0, 1), size, mode="area").unflatten(0, masks.shape[:2])
    return (average >= 0.5).float()


def step_items(config: TrainConfig, phase: str, step: int) -> list[ItemKey]:
    """The items of one optimizer step: `accumulate` groups of one item of each task; a collage is a source item."""
    tasks: Sequence[Task] = ("source",) if phase == "clone" else ("source", "reference")
    if phase == "tuning":
        tasks = (*config.tuning.tasks, "class") if config.tuning.class_images else config.tuning.tasks
    return [
        ItemKey(phase=phase, step=step, group=group, task=task) for group in range(config.accumulate) for task in tasks
    ]
