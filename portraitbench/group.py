"""The third bench: people whom the model was taught one by one, together in one picture, each in their place.

Everybody is a MagiCapture LoRA of photos of them alone. A group is drawn by three methods that differ in how the LoRAs
and the words meet, with the same people, words and noise. Lines are kept as those of the other benches are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture_core import artifact, kohya, lora, recipe, tokens
from magicapture_core.artifact import Artifact
from magicapture_core.backbone import TINY_FOLDER, Backbone
from magicapture_core.config import PRESETS, TrainConfig, parse_config
from magicapture_core.dataset import encode
from magicapture_core.group.attention import shares
from magicapture_core.group.layout import grid
from magicapture_core.group.people import Person
from magicapture_core.group.sampler import Predict, delayed, generate_group
from magicapture_core.images import save_image
from magicapture_core.sampler import PromptEmbeds, taught, walk
from magicapture_core.tokens import Vocabulary
from magicapture_core.trainer import train
from magicapture_core.types import LoraLayer

from . import one_photo, runs, world
from .lines import Line, fullest_key, key_of, run_missing, to_json
from .measure import Judges, Reading, read
from .methods import merge
from .nets import WEIGHTS
from .pictures import CACHE, to_arrays
from .views import place_window
from .world import Split

RESULTS = Path(__file__).parent / "results"
KIND = "group"
PEOPLE = 6  # of whom groups are made, and with all of whom every face is compared
PHOTOS, OTHERS, MADE, STRIP = 16, 16, 8, 2  # of a person to learn from, to compare with; of a group; kept to look at
SAMPLING: dict[str, Any] = {"num_steps": 12, "guidance": 2.5}
PICTURES = ".png"
CANVAS = {2: (64, 96), 3: (64, 128)}  # height, width
NUMBER = {2: "two", 3: "three"}
PLACES = {2: ("on the left", "on the right"), 3: ("on the left", "in the middle", "on the right")}
BACKGROUND, BACKGROUND_WORD = "in front of a plain blue background", "blue"
ALONE = (64, 64)  # the canvas of a picture of one person
SHOT = "a close-up photo"  # in which faces are as large as in the photos that everybody is learned from
DELAY = 0.4  # of the steps, in which nobody is known yet, whatever the method
TRAINING: dict[str, Any] = {  # of a person alone, nothing of a style: as was likest of what was tried, see the README
    "inversion": {"num_steps": 16},
    "tuning": {"num_steps": 384, "tasks": ("source",)},
    "loss": {"attention_weight": 0, "identity_weight": 0},
}
CORE_STAGES = (
    *runs.CORE_STAGES, "artifact", "recipe", "group/attention", "group/layout", "group/people", "group/sampler",
)  # fmt: skip
BENCH_STAGES = (*one_photo.BENCH_STAGES[:-1], "group", "methods", "runs")

Wording = Literal["alone", "together", "whole"]
Draw = Callable[[Backbone, Sequence[Person], Wording, dict[str, Any]], Tensor]


def about(place: int, count: int, wording: Wording) -> str:
    """What is said of one person, with `{person}`: as if they were alone; that they stand there, one of so many; or the
    whole caption, in which the others are anybody."""
    if wording == "alone" or count == 1:
        return "a photo of a {person}"
    told = [f"{where} a {'{person}' if at == place else 'person'}" for at, where in enumerate(PLACES[count])]
    return ", ".join([opening(count), *(told if wording == "whole" else [told[place]])])


def opening(count: int) -> str:
    return f"{SHOT} of {NUMBER[count]} people"


def layout(count: int) -> str:
    """What the first steps are told: so many people, each in their place, and nobody known."""
    return ", ".join([opening(count), *(f"{where} a person" for where in PLACES[count]), BACKGROUND])


def laid_out(backbone: Backbone, predict: Predict, people: Sequence[Person], options: dict[str, Any]) -> Tensor:
    """Pictures of a method's prediction, begun as `layout` says."""
    first = round(DELAY * options["num_steps"])
    return walk(backbone, delayed(backbone, predict, layout(len(people)), first), **options)


def prompt_alone(backbone: Backbone, people: Sequence[Person], _wording: Wording, options: dict[str, Any]) -> Tensor:
    """All LoRAs on the model at once and all words in one prompt, as the captions say it: what a LoRA loader does."""
    artifacts = [made for person in people if (made := person.artifact)]
    words = [
        replace(token, name=f"subject_{number}", placeholder=f"<person_{number}>")
        for number, made in enumerate(artifacts, 1)
        for token in made.tokens
        if token.name == "subject"
    ]
    told = [f"{where} a {word.placeholder} person" for where, word in zip(PLACES[len(people)], words, strict=True)]
    prompt = ", ".join([opening(len(people)), *told, BACKGROUND])
    layers = added([kohya.from_kohya(made.lora, kohya.UNET, backbone.unet) for made in artifacts])
    with tokens.injected(backbone.text_encoder, words):
        embeds = PromptEmbeds(backbone, Vocabulary.of(backbone.tokenizer, words), ["", prompt]).at(0)

    def predict(_step: int, latents: Tensor, timestep: Tensor) -> Tensor:
        with lora.applied(backbone.unet, layers):
            return backbone.unet(latents, timestep, embeds.repeat_interleave(options["num_images"], 0)).sample

    return laid_out(backbone, predict, people, options)


def added(loras: Sequence[lora.State]) -> lora.State:
    """One LoRA that does what all of them do together: up = [up_1 up_2], down = [down_1; down_2]."""
    return {
        path: LoraLayer(
            down=torch.cat([own[path].down for own in loras]),
            up=torch.cat([own[path].up * (own[path].alpha / len(own[path].down)) for own in loras], 1),
            alpha=sum(len(own[path].down) for own in loras),
        )
        for path in loras[0]
    }


def pass_by_pass(backbone: Backbone, people: Sequence[Person], _wording: Wording, options: dict[str, Any]) -> Tensor:
    """A whole pass of the UNet for each person with their LoRA and text, the predictions put together by the masks."""
    unet, count = backbone.unet, options["num_images"]
    embeds = []
    for person in people:
        with taught(backbone, person.artifact) as vocabulary:
            embeds.append(PromptEmbeds(backbone, vocabulary, ["", person.text(BACKGROUND)]).at(0))
    layers = [kohya.from_kohya(made.lora, kohya.UNET, unet) for person in people if (made := person.artifact)]
    masks = shares(torch.stack([person.mask for person in people]))

    def predict(_step: int, latents: Tensor, timestep: Tensor) -> Tensor:
        blended = torch.zeros_like(latents)
        places = F.interpolate(masks, latents.shape[2:], mode="area")
        for place, embed, own in zip(places, embeds, layers, strict=True):
            with lora.applied(unet, own):
                blended += place * unet(latents, timestep, embed.repeat_interleave(count, 0)).sample
        return blended

    return laid_out(backbone, predict, people, options)


def regions(backbone: Backbone, people: Sequence[Person], _wording: Wording, options: dict[str, Any]) -> Tensor:
    if len(people) == 1:
        return generate_group(backbone, people, BACKGROUND, **options)
    return generate_group(backbone, people, BACKGROUND, layout=layout(len(people)), delay=DELAY, **options)


class Method(NamedTuple):
    title: str
    draw: Draw


OURS, PROMPT = "regions", "prompt"
METHODS = {
    PROMPT: Method("prompt only", prompt_alone),
    "passes": Method("one pass per region", pass_by_pass),
    OURS: Method("regions in the attention", regions),
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
    """Its address: the group of that number among those of `count` people; of one, the person of that number."""

    method: str
    count: int
    group: int
    wording: Wording = "alone"
    split: Split = "test"

    @classmethod
    def of(cls, line: Line) -> Run:
        return cls(**{name: line[name] for name in cls.__dataclass_fields__ if name in line})

    @property
    def size(self) -> tuple[int, int]:
        return CANVAS.get(self.count, ALONE)

    @property
    def members(self) -> list[int]:
        """Numbers of the people, from left to right."""
        if self.count == 1:
            return [self.group]
        order = world.random(self.split, "group", self.count, self.group).permutation(PEOPLE)
        return [int(person) for person in order[: self.count]]

    def file(self, suffix: str) -> Path:
        """One that is kept on this machine."""
        return CACHE / KIND / results_key() / ("-".join(map(str, vars(self).values())) + suffix)


def the_config() -> TrainConfig:
    """How everybody is learned."""
    return parse_config(merge(PRESETS["tiny"], TRAINING))


def photos(split: Split, person: int) -> runs.Pair:
    pictures = world.subject_photos(split, person, PHOTOS + OTHERS)
    return runs.Pair(pictures[:PHOTOS], pictures[PHOTOS:])


def learned(split: Split, person: int) -> Artifact:
    """The LoRA of one person; kept on this machine, for all groups that they are in."""
    told = sha256(f"{runs.results_key()}/{the_config().model_dump_json()}".encode()).hexdigest()[:16]
    folder, name = CACHE / KIND / f"people-{told}", f"{split}-{person}"
    path = folder / f"{name}{artifact.SUFFIX}"
    if not path.exists():
        artifact.save(replace(train_person(split, person), name=name), folder)
    return artifact.load(path)


def train_person(split: Split, person: int) -> Artifact:
    """By the core's trainer. The style's side, which no task draws from, has the same photos."""
    bench, config = runs.the_bench(), the_config()
    given = runs.portraits(photos(split, person).trained)
    dataset = encode(bench.backbone, {"subject": given, "style": given}, config)
    with closing(train(bench.backbone, dataset, config)) as steps:
        *_, last = (recipe.to_artifact(step.run, KIND) for step in steps if step.step == step.num_steps)
    return last


@cache
def gallery(split: Split) -> list[Tensor]:
    """Of everybody the embeddings [n,D] of photos that no training saw."""
    judges = runs.the_bench().judges
    seen = [read(judges, to_arrays(photos(split, person).unseen).tensor()) for person in range(PEOPLE)]
    return [reading.embeddings[reading.seen] for reading in seen]


def measure_run(run: Run) -> dict[str, Any]:
    """Draws, measures place by place, keeps a strip of what was made. Returns the line: address and figures."""
    bench = runs.the_bench()
    masks = grid(1, run.count, run.size)
    people = [
        Person(made=learned(run.split, member), mask=mask, prompt=about(place, run.count, run.wording))
        for place, (member, mask) in enumerate(zip(run.members, masks, strict=True))
    ]
    options = {**SAMPLING, "seed": 1000 * run.group, "num_images": MADE, "size": run.size}
    made = METHODS[run.method].draw(bench.backbone, people, run.wording, options)
    save_image(torch.cat(list(made[:STRIP]), -1), run.file(PICTURES))
    seen = [look(bench.judges, made, place, run.count) for place in range(run.count)]
    figures = assignment(seen, run.members, gallery(run.split))
    if run.count == 1:
        figures |= told_apart(seen[0], run.group, gallery(run.split))
    figures["background"] = mean(words["background"] == BACKGROUND_WORD for one in seen for words in one.words)
    return {**vars(run), "figures": {name: to_json(value) for name, value in figures.items()}}


def look(judges: Judges, images: Tensor, place: int, count: int) -> Reading:
    """What the judges see of images [B,3,H,W] where one of `count` people stands."""
    return read(judges, torch.stack([place_window(image, place, count)[0] for image in images]))


def assignment(seen: Sequence[Reading], members: Sequence[int], known: Sequence[Tensor]) -> dict[str, float]:
    """Whose face is in each place. seen: by place. known: everybody's embeddings.

    accuracy: share of the places whose face is likest the intended one of the picture's people; accuracy_all: of all
    people. csim: mean cosine to the intended one, leakage: to the picture's others. A place without a face is wrong,
    and counts 0. detection: share of the places that show a face.
    """
    right, right_of_all, likeness, leak = [], [], [], []
    for place, reading in enumerate(seen):
        likely = torch.stack([(reading.embeddings @ one.T).mean(1) for one in known], 1)  # [B,PEOPLE]
        among = likely[:, list(members)]  # [B,count]
        right.append((among.argmax(1) == place) & reading.seen)
        right_of_all.append((likely.argmax(1) == members[place]) & reading.seen)
        likeness.append(among[:, place])
        leak.append(among[:, [other for other in range(len(members)) if other != place]].mean(1))
    return {
        "accuracy": float(torch.cat(right).float().mean()),
        "accuracy_all": float(torch.cat(right_of_all).float().mean()),
        "csim": float(torch.cat(likeness).mean()),
        "leakage": float(torch.cat(leak).mean()),
        "detection": float(torch.cat([reading.seen for reading in seen]).float().mean()),
    }


def told_apart(seen: Reading, person: int, known: Sequence[Tensor]) -> dict[str, float]:
    """How often pictures of one person are likest them, of them and one or two others: what a group can reach.

    The mean over all choices of the others. A picture without a face is wrong.
    """
    likely = torch.stack([(seen.embeddings @ one.T).mean(1) for one in known], 1)  # [B,PEOPLE]
    less = (likely < likely[:, [person]]) & seen.seen[:, None]
    others = [other for other in range(len(known)) if other != person]
    return {
        f"of_{count}": mean(
            float(less[:, list(chosen)].all(1).float().mean()) for chosen in combinations(others, count - 1)
        )
        for count in CANVAS
    }


def run_all(todo: Sequence[Run], workers: int = 1) -> Iterator[Line]:
    """Each run's line, see `run_missing`; first everybody is learned whom a run needs and no file holds.

    Raises MagiCaptureError at once when weights are missing.
    """
    runs.the_bench()
    for run in todo:
        for person in run.members:
            learned(run.split, person)
    yield from run_missing(todo, measure_run, lines_file(), Run.of, workers)
