"""The second bench: one photo of one person, the model frozen, and how much of the person and of the prompt comes out.

SeFi-IDE, its ablations and Textual Inversion are configurations of the core's own trainer, with the same number of UNet
passes. Lines are kept as those of the first bench are, under a key of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicapture_core.backbone import TINY_FOLDER, Backbone
from magicapture_core.dataset import encode_images
from magicapture_core.files import write_atomic
from magicapture_core.images import save_image
from magicapture_core.sampler import generate
from magicapture_core.sefi.config import PRESETS, SefiConfig, parse_sefi_config
from magicapture_core.sefi.identity import SefiIdentity
from magicapture_core.sefi.objective import EncodedPhotos
from magicapture_core.sefi.trainer import train

from . import world
from .labels import ATTRIBUTES
from .lines import Line, fullest_key, key_of, run_missing, to_json
from .measure import Judges, Reading, csim, detection, read, trait_error
from .nets import WEIGHTS, load_tiny
from .pictures import CACHE, to_arrays
from .world import Picture, Split

RESULTS = Path(__file__).parent / "results"
CORE = TINY_FOLDER.parent
KIND = "one-photo"
OTHERS, MADE, EDITED = 16, 24, 4  # pictures of the person to compare with; made; made of each edit
SAMPLING: dict[str, Any] = {"num_steps": 12, "guidance": 4.0}
SIZE, CANDIDATES_SEED = 64, 500_000
OURS, UNTOUCHED = "full", "untouched"
PICTURES = ".png"  # of a run, a strip of one without and one with each edit
BASE = PRESETS["tiny"]
FAMILIES = ("attributes", "accessories", "backgrounds")
# What a run's figures depend on, beside the weights and the tiny model.
CORE_STAGES = (
    "attention", "backbone", "config", "crew", "dataset", "diffusion", "face_nets", "faces", "kohya", "lora", "losses",
    "objective", "optimizers", "prompts", "restore", "run", "sampler", "sefi/config", "sefi/identity",
    "sefi/objective", "sefi/stages", "sefi/trainer", "small_recognisers", "tflite", "tokens", "vocabulary",
)  # fmt: skip
BENCH_STAGES = (
    "accessories", "background", "captions", "cat", "clothes", "draw", "face", "features", "hair", "labels", "measure",
    "nets", "one_photo", "parameters", "pictures", "portrait", "views", "world",
)  # fmt: skip

Found = Callable[[Reading, int], bool]  # of a picture of these
Reader = Callable[[Tensor], Tensor]  # stages [S,2,C] -> [S',2,C], what of them is used


class Edit(NamedTuple):
    """Words behind the sentence, or before the person; and whether a judge finds in a picture what they ask for."""

    family: str
    behind: str
    found: Found
    before: str = ""

    def prompt(self, config: SefiConfig, word: str) -> str:
        return config.sentence(self.before + word) + self.behind


def has(attribute: str) -> Found:
    return lambda reading, row: bool(reading.attributes[row, ATTRIBUTES.index(attribute)])


def shows(name: str, word: str) -> Found:
    return lambda reading, row: reading.words[row][name] == word


def wears(text: str, found: Found) -> Edit:
    return Edit("accessories", f" wearing {text}", found)


def has_hair(color: str) -> Edit:
    return Edit("attributes", f" with short {color} hair", shows("hair_color", color))


def stands_before(color: str) -> Edit:
    return Edit("backgrounds", f", in front of a plain {color} background", shows("background", color))


CANDIDATES: dict[str, Edit] = {
    **{f"{color}_hair": has_hair(color) for color in ("blond", "pink", "blue", "grey", "black")},
    "beard": Edit("attributes", " with a beard", has("beard")),
    "old": Edit("attributes", "", has("old"), before="old "),
    "eyes_closed": Edit("attributes", ", eyes closed", has("eyes_closed")),
    "glasses": wears("glasses", has("glasses")),
    "earrings": wears("earrings", has("earrings")),
    "red_cap": wears("a red cap", has("cap")),
    "red_hat": wears("a red hat", shows("hat", "hat")),
    "red_beanie": wears("a red beanie", shows("hat", "beanie")),
    "blue_scarf": wears("a blue scarf", shows("neckwear", "scarf")),
    **{f"{color}_background": stands_before(color) for color in ("green", "blue", "pink")},
    "stripes": Edit("backgrounds", ", in front of a white background with blue stripes", shows("pattern", "stripes")),
}
LEAST_OBEYED = 0.6  # share of its pictures in which the untouched model obeys, as `prompts` measured; less says nothing
EDITS = {
    name: CANDIDATES[name]
    for name in (
        "pink_hair", "beard", "glasses", "red_cap", "red_hat", "red_beanie", "blue_scarf", "green_background",
        "blue_background", "pink_background",
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """changes: to BASE; None trains nothing, and the prompt has the plain word. reader: what of the learned words is
    used."""

    title: str
    changes: Mapping[str, Any] | None = field(default_factory=dict)
    reader: Reader = lambda stages: stages

    def config(self, seed: int, learning_rate_factor: float = 1.0, attention_factor: float = 1.0) -> SefiConfig:
        values = {**BASE, **(self.changes or {}), "seed": seed}
        values["learning_rate"] *= learning_rate_factor
        values["attention_weight"] *= attention_factor
        return parse_sefi_config(values)


def passes(config: SefiConfig) -> int:
    """Of the UNet."""
    return config.num_steps * config.accumulate


def ordinary(stages: Tensor, roles: slice = slice(None)) -> Tensor:
    """The mean of all words [S,2,C], or of those for the keys or the values, as one word for all: [1,2,C]."""
    return stages[:, roles].mean((0, 1)).expand(1, 2, -1)


# As `tune` found, beside the preset's own rate and weight: of the settings that keep editability within 5 points of the
# untouched model's, that of most likeness; of the vectors, none of which does, the one nearest to it.
VECTORS_RATE, INVERSION_RATE = 0.003, 0.001
INVERSION_LIKEST_RATE = 0.03  # of all rates up to this one, and editability let go
VECTORS = {"parts": "vectors", "learning_rate": VECTORS_RATE}
INVERSION = {"parts": "vectors", "num_stages": 1, "key_value_split": False, "attention_weight": 0}

# Beside the whole method's 0.45, the paper's weights and twice as much; beside its 5 stages.
WEIGHTS_TRIED, STAGES_TRIED = (1e-4, 1e-3, 3e-3, 1e-2, 5e-2, 0.9), (1, 3, 10)

METHODS: dict[str, Method] = {
    UNTOUCHED: Method(title="untouched model", changes=None),
    "textual_inversion": Method(title="Textual Inversion", changes={**INVERSION, "learning_rate": INVERSION_RATE}),
    "inversion_likest": Method(
        title="Textual Inversion, 30 times the rate", changes={**INVERSION, "learning_rate": INVERSION_LIKEST_RATE}
    ),
    "stages": Method(
        title="words of five stages", changes={**VECTORS, "key_value_split": False, "attention_weight": 0}
    ),
    "split": Method(title="+ keys and values apart", changes={**VECTORS, "attention_weight": 0}),
    "loss": Method(title="+ attention loss", changes=VECTORS),
    OURS: Method(title="SeFi-IDE: + self-attention block"),
    "plain": Method(title="SeFi-IDE's mean as an ordinary word", reader=ordinary),
    "plain_keys": Method(title="the mean of its keys' words", reader=lambda stages: ordinary(stages, slice(0, 1))),
    "plain_values": Method(title="the mean of its values' words", reader=lambda stages: ordinary(stages, slice(1, 2))),
}
WEIGHT_SWEEP = {f"weight_{weight:g}": weight for weight in WEIGHTS_TRIED}
STAGE_SWEEP = {f"stages_{count}": count for count in STAGES_TRIED}
METHODS |= {
    name: Method(title=f"attention loss at {weight:g}", changes={"attention_weight": weight})
    for name, weight in WEIGHT_SWEEP.items()
}
METHODS |= {
    name: Method(title=f"{count} stage{'s' * (count > 1)}", changes={"num_stages": count})
    for name, count in STAGE_SWEEP.items()
}


def sources() -> list[Path]:
    tiny = [path for part in ("vae", "unet", "text_encoder", "tokenizer") for path in (TINY_FOLDER / part).iterdir()]
    bench = [Path(__file__).parent / f"{stage}.py" for stage in BENCH_STAGES]
    return [*(CORE / f"{stage}.py" for stage in CORE_STAGES), *sorted((*bench, *tiny, *WEIGHTS.glob("*.safetensors")))]


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
    """Its address. The factors multiply the method's own rate and the weight of its attention loss."""

    method: str
    person: int
    seed: int = 0
    split: Split = "test"
    learning_rate_factor: float = 1.0
    attention_factor: float = 1.0

    @classmethod
    def of(cls, line: Line) -> Run:
        return cls(**{name: line[name] for name in cls.__dataclass_fields__ if name in line})

    @property
    def config(self) -> SefiConfig:
        return METHODS[self.method].config(self.seed, self.learning_rate_factor, self.attention_factor)

    def file(self, suffix: str) -> Path:
        """One that is kept on this machine."""
        return CACHE / KIND / results_key() / ("-".join(map(str, vars(self).values())) + suffix)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all runs share, loaded once."""

    backbone: Backbone
    judges: Judges


@cache
def the_bench() -> Bench:
    """This process's one. Raises MagiCaptureError when weights are missing or belong to another world."""
    return Bench(backbone=load_tiny(), judges=Judges.load())


class Photos(NamedTuple):
    """Of one person: the one that is trained on, and others to compare with."""

    trained: Picture
    unseen: list[Picture]


def photos(run: Run) -> Photos:
    """The first close-up, as the training's sentence says and as photos are cropped; and the first others."""
    pictures = world.subject_photos(run.split, run.person, 2 * OTHERS, SIZE, SIZE)
    one = next(picture for picture in pictures if picture.scene.setting.framing == "close-up")
    return Photos(one, [picture for picture in pictures if picture is not one][:OTHERS])


def measure_run(run: Run) -> dict[str, Any]:
    """Trains, measures against pictures that no training saw, keeps a strip of what was made.

    Returns the line: the run's address and its figures, None where one could not be measured.
    """
    bench = the_bench()
    identity = learned(run)
    word = identity.placeholder if identity else run.config.initializer_token

    def made(prompt: str, count: int) -> Tensor:
        options = {**SAMPLING, "seed": 1000 * run.person + 100 * run.seed, "num_images": count}
        return generate(bench.backbone, None, prompt, identities=[identity] if identity else [], **options)

    pictures = {"": made(run.config.sentence(word), MADE)}
    pictures |= {name: made(edit.prompt(run.config, word), EDITED) for name, edit in EDITS.items()}
    save_image(torch.cat([images[0] for images in pictures.values()], -1), run.file(PICTURES))
    seen = {name: read(bench.judges, images) for name, images in pictures.items()}
    of_person = read(bench.judges, to_arrays(photos(run).unseen).tensor())
    who = world.identity(run.split, run.person)
    unedited = seen.pop("")
    figures = {
        "csim": csim(unedited, of_person),
        "detection": detection(unedited),
        "trait_error": trait_error(unedited, who),
        "edited_csim": mean(csim(reading, of_person) for reading in seen.values()),
        "edited_detection": mean(detection(reading) for reading in seen.values()),
        **obedience(seen),
        "unasked": mean(share(edit, unedited) for edit in EDITS),
    }
    return {**vars(run), "figures": {name: to_json(value) for name, value in figures.items()}}


def obedience(seen: Mapping[str, Reading]) -> dict[str, float]:
    """The share of each edit's pictures that obey; of each family the mean over its edits, and of all families."""
    shares = {edit: share(edit, reading) for edit, reading in seen.items()}
    families = {
        family: mean(value for edit, value in shares.items() if EDITS[edit].family == family) for family in FAMILIES
    }
    return {**shares, **families, "editability": mean(families.values())}


def share(edit: str, reading: Reading) -> float:
    """Of the pictures, those in which a judge finds what the edit asks for."""
    return mean(CANDIDATES[edit].found(reading, row) for row in range(len(reading.words)))


def obeyed_untouched() -> dict[str, float]:
    """The share of each candidate that the untouched model obeys, in pictures of seeds of their own."""
    bench, config = the_bench(), METHODS[UNTOUCHED].config(0)
    options = {**SAMPLING, "seed": CANDIDATES_SEED, "num_images": MADE}

    def pictures(edit: Edit) -> Tensor:
        return generate(bench.backbone, None, edit.prompt(config, config.initializer_token), **options)

    return {name: share(name, read(bench.judges, pictures(edit))) for name, edit in CANDIDATES.items()}


def learned(run: Run) -> SefiIdentity | None:
    """What the run's prompts call the person by; None for the plain word."""
    method, config, bench = METHODS[run.method], run.config, the_bench()
    if method.changes is None:
        return None
    return SefiIdentity(
        name=run.method,
        architecture=bench.backbone.architecture,
        placeholder=config.placeholder_token,
        initializer=config.initializer_token,
        stages=method.reader(trained(run)),
        template=config.template,
    )


def trained(run: Run) -> Tensor:
    """[S,2,C], of the method's whole training; kept on this machine, for the methods that share one."""
    told = f"{run.split}/{run.person}/{run.config.model_dump_json()}"
    path = CACHE / KIND / results_key() / f"{sha256(told.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        stages = train_words(run)
        write_atomic(path, lambda file: save_file({"stages": stages}, file))
    return load_file(path)["stages"]


def train_words(run: Run) -> Tensor:
    """[S,2,C], by the core's trainer."""
    backbone, config = the_bench().backbone, run.config
    mean, std = encode_images(backbone.vae, to_arrays([photos(run).trained]).tensor(), config.flip)
    encoded = EncodedPhotos(mean=mean, std=std, scaling_factor=backbone.vae.config.scaling_factor)
    with closing(train(backbone, encoded, config)) as steps:
        *_, token = (step.run.token() for step in steps if step.step == step.num_steps)
    return token.vectors.unflatten(0, (-1, 2))


def run_all(runs: Sequence[Run], workers: int = 1) -> Iterator[Line]:
    """Each run's line, see `run_missing`. Raises MagiCaptureError at once when weights are missing too."""
    the_bench()
    yield from run_missing(runs, measure_run, lines_file(), Run.of, workers)
