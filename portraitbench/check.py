"""The gates: what the trained models must reach before the bench's numbers mean anything, on held-out seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture_core.backbone import Backbone
from magicapture_core.faces import FaceDetector, load_face_detector
from magicapture_core.identity import MARGIN, embed_latents
from magicapture_core.sampler import generate

from . import world
from .bars import Bar
from .captions import article
from .measure import find_landmarks, read_words
from .nets import load_net, load_tiny
from .parameters import BACKGROUND_COLORS, CLOTHES_COLORS, CUTS, GARMENTS, HAIR_COLORS, Nuisance, Style, pick
from .pictures import load_pictures, to_tensor
from .pretrain.judges import Subjects, style_accuracy, style_target, style_window
from .pretrain.people import load_people
from .pretrain.recognisers import score, verification_accuracy
from .pretrain.vae import score as vae_score
from .views import face_crops, hide_face, place_window
from .world import CANVASES

PICTURES = 256  # of each measurement
VERIFICATION = {"pictures": 0.97, "rebuilt": 0.94}
FACE_HEIGHTS = (16, 24, 32, 48)
STEPS, GUIDANCE = 20, 4.0
MARGINS, WHOLE = (0, 2, 4, 8), 1000  # latent cells around a face that are decoded with it; all there are


def print_gates() -> bool:
    """Measures and prints every gate; whether all hold."""
    holds = True
    backbone, detector = load_tiny(), load_face_detector()
    for measure in (vae_gates, window_gates, recogniser_gates, style_judge_gates, prompt_gates):
        for gate in measure(backbone, detector):
            print(gate, flush=True)
            holds &= gate.holds
    return holds


def vae_gates(backbone: Backbone, detector: FaceDetector) -> Iterator[Bar]:
    """Over all canvases."""
    scores = [vae_score(backbone.vae, load_pictures("test", *canvas, PICTURES)) for canvas in CANVASES]
    for name, title, least in (("psnr", "whole picture", 30.0), ("face_psnr", "inside faces", 28.0)):
        figure = sum(one[name] for one in scores) / len(scores)
        yield Bar(name=f"VAE reconstruction, {title}", figure=figure, least=least, unit="dB")


@torch.no_grad()
def window_gates(backbone: Backbone, detector: FaceDetector) -> Iterator[Bar]:
    """A face decoded out of its window of the latents, and out of all of them: how alike the recogniser finds the two.

    On the widest canvas, where a window leaves most out. The margin that the identity loss takes has to hold.
    """
    recogniser: Any = load_net("training_recogniser")
    pictures, vae = load_pictures("test", 96, 96, PICTURES), backbone.vae
    cosines: dict[int, list[float]] = {margin: [] for margin in MARGINS}
    for image, points in zip(pictures.tensor(), pictures.landmarks[:, 0], strict=True):
        if not np.isnan(points).any():
            latents = vae.encode(image[None] * 2 - 1).latent_dist.mean[0] * vae.config.scaling_factor
            landmarks = torch.from_numpy(points)
            whole = embed_latents(vae, recogniser, latents, landmarks, WHOLE)
            for margin, found in cosines.items():
                found.append(float((embed_latents(vae, recogniser, latents, landmarks, margin) * whole).sum()))
    for margin, found in cosines.items():
        name = f"face window with a margin of {margin} latents, median cosine to the whole"
        yield Bar(name=name, figure=median(found), least=0.98 if margin == MARGIN else None)


def recogniser_gates(backbone: Backbone, detector: FaceDetector) -> Iterator[Bar]:
    people = load_people("test", 200, backbone)
    for name in ("training_recogniser", "judging_recogniser"):
        net = load_net(name)
        for view, figure in score(net, people).items():
            title = f"{name.replace('_', ' ')}, same or different, {view}"
            yield Bar(name=title, figure=figure, least=VERIFICATION.get(view))
    judge = load_net("judging_recogniser")
    for height in FACE_HEIGHTS:
        first, second = (face_set(judge, height, photo) for photo in (0, 1))
        both = torch.stack([first, second], 1)
        yield Bar(name=f"judging recogniser, faces of {height} px", figure=verification_accuracy(both, both))


def face_set(judge: Any, height: int, photo: int) -> Tensor:
    """Embeddings [P,D] of one photo of 100 people, brought to faces `height` pixels high."""
    embeddings = []
    for person in range(100):
        rng = world.random("test", "face heights", person, photo)
        how = Style.draw(rng)
        how = replace(how, setting=replace(how.setting, framing="close-up"))
        picture = world.render(world.compose(world.identity("test", person), how, Nuisance.draw(rng), 96, 96))
        factor = height / picture.faces[0].size
        small = F.interpolate(to_tensor(picture.image[None]), scale_factor=factor, mode="bilinear", antialias=True)
        landmarks = torch.from_numpy(picture.faces[0].landmarks.astype(np.float32)) * factor
        embeddings.append(judge(face_crops(small, landmarks[None])))
    return torch.cat(embeddings)


def style_judge_gates(backbone: Backbone, detector: FaceDetector) -> Iterator[Bar]:
    """The judge on true pictures: what it cannot read there it cannot tell of generated ones."""
    subjects = Subjects("test", (64, 64), PICTURES, backbone.vae)
    rng = np.random.default_rng(0)
    windows = torch.stack([style_window(subjects, number, True, rng) for number in range(len(subjects))])
    targets = torch.tensor([style_target(subjects, number) for number in range(len(subjects))])
    for name, figure in style_accuracy(load_net("style_judge")(windows), targets).items():
        yield Bar(name=f"style judge, {name.replace('_', ' ')}", figure=figure)


def prompt_gates(backbone: Backbone, detector: FaceDetector) -> Iterator[Bar]:
    """Hair, clothes and background as the prompt asked, read by the style judge."""
    judge = load_net("style_judge")
    one = [followed(backbone, detector, judge, ask(number, 1)) for number in range(PICTURES)]
    for name in one[0]:
        yield Bar(name=f"prompt following, {name.replace('_', ' ')}", figure=mean(found[name] for found in one))
    figure = mean(value for found in one for value in found.values())
    yield Bar(name="prompt following, hair, clothes and background", figure=figure, least=0.90)
    two = [followed(backbone, detector, judge, ask(number, 2)) for number in range(PICTURES // 4)]
    figure = mean(value for found in two for value in found.values())
    yield Bar(name="prompt following, two people", figure=figure, least=0.80)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, its seed, and for each subject from left to right the words to be found in the picture."""

    prompt: str
    seed: int
    wanted: tuple[dict[str, str], ...]


def ask(number: int, count: int) -> Request:
    """One or two people in front of a plain background."""
    rng = world.random("test", "prompts", count, number)
    background = pick(rng, tuple(BACKGROUND_COLORS))
    wanted, people = [], []
    for _ in range(count):
        hair, color, garment = pick(rng, tuple(HAIR_COLORS)), pick(rng, tuple(CLOTHES_COLORS)), pick(rng, GARMENTS)
        people.append(f"a person with {pick(rng, CUTS)} {hair} hair wearing {article(color)} {color} {garment}")
        wanted.append({"hair_color": hair, "clothes_color": color, "background": background})
    who = people[0] if count == 1 else f"two people, on the left {people[0]}, on the right {people[1]}"
    prompt = f"a photo of {who}, in front of a plain {background} background"
    return Request(prompt=prompt, seed=number, wanted=tuple(wanted))


def followed(backbone: Backbone, detector: FaceDetector, judge: Any, request: Request) -> dict[str, float]:
    """Share of the subjects for whom the judge finds each wanted word."""
    count = len(request.wanted)
    size = (64, 64 * count)
    options: dict[str, Any] = {"num_steps": STEPS, "guidance": GUIDANCE, "seed": request.seed, "size": size}
    image = generate(backbone, None, request.prompt, **options)[0]
    found: dict[str, float] = {}
    for place, wanted in enumerate(request.wanted):
        read = read_style(judge, detector, image, place, count)
        for name, word in wanted.items():
            found[name] = found.get(name, 0.0) + (read[name] == word) / count
    return found


def read_style(judge: Any, detector: FaceDetector, image: Tensor, place: int, count: int) -> dict[str, str]:
    """Every style attribute of one subject of image [3,H,W], as the judge reads it."""
    window, _ = place_window(image, place, count)
    [words] = read_words(judge, hide_face(window, find_landmarks(detector, window))[None])
    return words
