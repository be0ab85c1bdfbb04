"""The fourth bench: faces as small as a picture leaves them, given back to their person.

A photo of somebody is made so small that their face has a given height, and drawn anew by the model from half the way
to noise, with a prompt that knows nobody: so the face is where a generator puts one, and as much a stranger's as one of
this size gets. The third bench's LoRA of the person then redraws it, by the core's own steps and by two rivals. Lines
are kept as those of the other benches are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture_core.artifact import Artifact
from magicapture_core.backbone import TINY_FOLDER, Backbone
from magicapture_core.diir.inversion import Predict, denoise
from magicapture_core.diir.pictures import PERSONAL_PROMPT, fill_personal, redraw_faces
from magicapture_core.diir.restorer import PLAIN_PROMPT, Walk, encoded, redraw, redrawing
from magicapture_core.images import resize, save_image
from magicapture_core.likeness import likeness_to
from magicapture_core.restore import Restorer, Rise
from magicapture_core.sampler import PromptEmbeds, applied, decode, taught
from magicapture_core.types import Face

from . import group, runs, world
from .lines import Line, fullest_key, key_of, run_missing, to_json
from .measure import Judges, read
from .nets import WEIGHTS
from .pictures import CACHE, to_arrays, to_tensor
from .views import face_crops
from .world import Split

RESULTS = Path(__file__).parent / "results"
KIND = "small-faces"
HEIGHTS = (16, 24, 32, 48, 64)  # of a face, in pixels
LARGE = 192  # side in pixels of the photos before they are made small
PHOTOS, STRIP = 4, 2  # of each person; kept to look at
PICTURES = ".png"
DAMAGE = Walk(strength=0.5, num_steps=20, guidance=2.5)
CORE_STAGES = (
    *group.CORE_STAGES, "diir/inversion", "diir/pictures", "diir/restorer", "face_outcomes", "images", "likeness",
)  # fmt: skip
BENCH_STAGES = (*group.BENCH_STAGES, "small_faces")

Draw = Callable[[Backbone, Artifact, Walk], AbstractContextManager[Restorer]]


def predictor(backbone: Backbone, embeds: Tensor, guidance: float) -> Predict:
    """The model's noise under prompts [2,T,C], the first the negative one."""
    alphas_cumprod = backbone.noise_scheduler.alphas_cumprod
    levels = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        latents = (x / (sigma**2 + 1).sqrt()).expand(2, -1, -1, -1)
        negative, positive = backbone.unet(latents, (levels - sigma).abs().argmin(), embeds).sample.chunk(2)
        return negative + guidance * (positive - negative)

    return predict


def noised(latents: Tensor, sigmas: Tensor) -> list[Tensor]:
    """At each level, under the same noise."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return [latents + sigma * noise for sigma in sigmas]


@contextmanager
def image_to_image(backbone: Backbone, made: Artifact, walk: Walk) -> Iterator[Restorer]:
    """What a face detailer does: the crop under fresh noise, drawn again with the person; around the face, at every
    step, the crop under as much of the same noise."""
    sigmas = walk.sigmas(backbone.noise_scheduler.alphas_cumprod)
    with applied(backbone, made) as vocabulary, torch.no_grad():
        embeds = PromptEmbeds(backbone, vocabulary, ["", fill_personal(PERSONAL_PROMPT, made, None)]).at(0)
        predict = predictor(backbone, embeds, walk.guidance)
        yield redraw(
            to_latents=lambda images: encoded(backbone, images),
            to_images=lambda latents: decode(backbone, latents),
            forth=lambda latents: noised(latents, sigmas),
            back=lambda path, mask, _faces: denoise(predict, path, sigmas, mask),
            size=backbone.unet.config.sample_size * backbone.vae_factor,
        )


def nobody(backbone: Backbone, _made: Artifact, walk: Walk) -> AbstractContextManager[Restorer]:
    return redrawing(backbone, None, PLAIN_PROMPT, walk=walk)


def with_person(backbone: Backbone, made: Artifact, walk: Walk) -> AbstractContextManager[Restorer]:
    return redrawing(backbone, made, fill_personal(PERSONAL_PROMPT, made, None), walk=walk)


class Method(NamedTuple):
    title: str
    draw: Draw


OURS = "inversion"
METHODS = {
    "image_to_image": Method("image to image", image_to_image),
    "nobody": Method("inversion, nobody", nobody),
    OURS: Method("inversion with the person", with_person),
}


def sources() -> list[Path]:
    tiny = [path for part in ("vae", "unet", "text_encoder", "tokenizer") for path in (TINY_FOLDER / part).iterdir()]
    core = [TINY_FOLDER.parent / f"{stage}.py" for stage in dict.fromkeys(CORE_STAGES)]
    bench = [Path(__file__).parent / f"{stage}.py" for stage in dict.fromkeys(BENCH_STAGES)]
    return [*core, *sorted((*bench, *tiny, *WEIGHTS.glob("*.safetensors")))]


@cache
def results_key() -> str:
    """A hash of all that figures depend on, as it was when this process first asked."""
    return key_of(sources())


def lines_file(key: str | None = None) -> Path:
    return RESULTS / f"{KIND}-{key or results_key()}.jsonl"


def table_key() -> str:
    """Today's, or where nothing was measured with it yet, the key of the fullest table of before."""
    return fullest_key(RESULTS, KIND, results_key())


@dataclass(frozen=True, kw_only=True)
class Run:
    """Its address. height: of the faces in pixels. strength, guidance: of the walk."""

    method: str
    height: int
    person: int
    strength: float = 0.5
    guidance: float = 2.5
    split: Split = "test"

    @classmethod
    def of(cls, line: Line) -> Run:
        return cls(**{name: line[name] for name in cls.__dataclass_fields__ if name in line})

    def file(self, suffix: str) -> Path:
        """One that is kept on this machine."""
        return CACHE / KIND / results_key() / ("-".join(map(str, vars(self).values())) + suffix)


class Small(NamedTuple):
    """A picture [3,H,W] whose face is too small, and where that is."""

    image: Tensor
    face: Face


@cache
def small_pictures(split: Split, person: int, height: int) -> list[Small]:
    """Of photos that the person's training did not see, as the model draws them anew."""
    backbone, found = runs.the_bench().backbone, []
    count, grid = group.PHOTOS + PHOTOS, backbone.vae_factor * 2 ** (len(backbone.unet.config.block_out_channels) - 1)
    for picture in world.subject_photos(split, person, count, LARGE, LARGE)[group.PHOTOS :]:
        truth = picture.faces[0]
        side = max(round(LARGE * height / truth.size / grid), 1) * grid
        shrunk = resize(to_tensor(picture.image[None]), (side, side)).clamp(0, 1)
        scale = side / LARGE
        box, landmarks = (torch.as_tensor(one, dtype=torch.float32) * scale for one in (truth.box, truth.landmarks))
        found.append(Small(drawn_anew(backbone, shrunk)[0], Face(box=box, landmarks=landmarks)))
    return found


@torch.no_grad()
def drawn_anew(backbone: Backbone, images: Tensor) -> Tensor:
    """images [1,3,H,W] 0..1 from DAMAGE of the way to noise and back, as a picture of anybody."""
    sigmas = DAMAGE.sigmas(backbone.noise_scheduler.alphas_cumprod)
    with taught(backbone, None) as vocabulary:
        embeds = PromptEmbeds(backbone, vocabulary, ["", PLAIN_PROMPT]).at(0)
    predict = predictor(backbone, embeds, DAMAGE.guidance)
    path = noised(encoded(backbone, images), sigmas)
    return decode(backbone, denoise(predict, path, sigmas, torch.ones(1)))


@cache
def rise(split: Split, person: int) -> Rise:
    """What accepts a face, as users have it: by the recogniser of trainings, to the photos of the training."""
    bench, trained = runs.the_bench(), to_arrays(group.photos(split, person).trained).tensor()
    return Rise(likeness=likeness_to(bench.recogniser, bench.judges.detector, [*trained]))


@cache
def known(split: Split, person: int) -> Tensor:
    """[n,D], what the judges see of the person in further photos."""
    reading = read(runs.the_bench().judges, to_arrays(group.photos(split, person).unseen[PHOTOS:]).tensor())
    return reading.embeddings[reading.seen]


def measure_run(run: Run) -> dict[str, Any]:
    """Redraws, measures, keeps a strip of what was made. Returns the line: address and figures."""
    bench, guard = runs.the_bench(), rise(run.split, run.person)
    walk = Walk(strength=run.strength, guidance=run.guidance)
    pictures = small_pictures(run.split, run.person, run.height)
    with METHODS[run.method].draw(bench.backbone, group.learned(run.split, run.person), walk) as restorer:
        made = [redraw_faces(image, [face], restorer).image for image, face in pictures]
    save_image(strip(pictures, made), run.file(PICTURES))
    kept = [
        guard.keeps(guard.likeness(image, face), guard.likeness(after, face))
        for (image, face), after in zip(pictures, made, strict=True)
    ]
    faces = [face for _, face in pictures]
    target = known(run.split, run.person)
    before = csim(bench.judges, [image for image, _ in pictures], faces, target)
    after = csim(bench.judges, made, faces, target)
    figures = assess(before, after, kept)
    return {**vars(run), "figures": {name: to_json(value) for name, value in figures.items()}}


def strip(pictures: Sequence[Small], made: Sequence[Tensor]) -> Tensor:
    """[3,LARGE,?], the first pictures before and after, as large as the photos were, their pixels to be seen."""
    pairs = [(small.image, after) for small, after in zip(pictures[:STRIP], made, strict=False)]
    return torch.cat([F.interpolate(one[None], (LARGE, LARGE))[0] for pair in pairs for one in pair], -1)


@torch.no_grad()
def csim(judges: Judges, images: Sequence[Tensor], faces: Sequence[Face], target: Tensor) -> list[float]:
    """Of each face, framed by where it truly is, the mean cosine to `target` [n,D]."""
    points = [face.landmarks for face in faces if face.landmarks is not None]
    crops = [face_crops(image[None], one[None]) for image, one in zip(images, points, strict=True)]
    return (judges.recogniser(torch.cat(crops)) @ target.T).mean(1).tolist()


def assess(before: Sequence[float], after: Sequence[float], kept: Sequence[bool]) -> dict[str, float]:
    """before, after: likeness of each face as the judge sees it. kept: whether the guard accepts it.

    csim_before, csim: means. accepted: share. csim_kept: mean of what users get, those put back as before. lowered: of
    the accepted faces the share that the judge, who is not the guard, finds less alike than before; NaN without one.
    """
    finished = [new if is_kept else old for old, new, is_kept in zip(before, after, kept, strict=True)]
    changes = [new < old for old, new, is_kept in zip(before, after, kept, strict=True) if is_kept]
    return {
        "csim_before": mean(before),
        "csim": mean(after),
        "csim_kept": mean(finished),
        "accepted": mean(kept),
        "lowered": mean(changes) if changes else float("nan"),
    }


def run_all(todo: Sequence[Run], workers: int = 1) -> Iterator[Line]:
    """Each run's line, see `run_missing`; first everybody is learned whom a run needs and no file holds.

    Raises MagiCaptureError at once when weights are missing.
    """
    runs.the_bench()
    for run in todo:
        group.learned(run.split, run.person)
    yield from run_missing(todo, measure_run, lines_file(), Run.of, workers)
