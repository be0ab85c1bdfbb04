"""The terminal's `group`: people's files and where they stand in, pictures of them together out."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import options
from ..terminal import Result, progress, read_model
from ..types import MagiCaptureError
from .people import DELAY

if TYPE_CHECKING:
    from torch import Tensor

    from ..artifact import Artifact
    from ..sefi.identity import SefiIdentity
    from .people import Person

GRID = 8  # pixels behind a cell of the latents


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--person",
        type=Path,
        required=True,
        action="append",
        metavar="FILE",
        help="a LoRA or an identity; again for each further person, from left to right",
    )
    parser.add_argument(
        "--about",
        action="append",
        metavar="TEXT",
        help="about that person alone, who is {person} in it; once for each --person",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        action="append",
        metavar="FILE",
        help="white = where that person stands; once for each --person, all of one size",
    )
    parser.add_argument(
        "--boxes",
        metavar="TEXT",
        help='instead of masks, left, top, right and bottom of each region from 0 to 1: "0,0,.5,1; .5,0,1,1". '
        "Without either they stand side by side",
    )
    parser.add_argument(
        "--layout",
        default="",
        metavar="TEXT",
        help="how many people there are and where, with nobody named: this prompt alone makes the first steps",
    )
    parser.add_argument(
        "--delay",
        type=options.share,
        default=DELAY,
        metavar="X",
        help="of a --layout, its share of the steps (%(default)s)",
    )
    parser.add_argument("--size", type=pixels, metavar="WIDTHxHEIGHT", help="the model's own by default")
    options.add_sampling(parser, "the whole picture: where they are, the light, the style")
    options.add_count(parser)


def group(arguments: Namespace) -> Result:
    from ..images import save_image
    from .layout import preview
    from .people import overlaps
    from .sampler import generate_group

    people, prompt = read_people(arguments), arguments.prompt or ""
    with progress(arguments.num_steps, "sampling") as bar:
        images = generate_group(
            read_model(arguments),
            people,
            prompt,
            negative_prompt=arguments.negative_prompt,
            num_images=arguments.count,
            num_steps=arguments.num_steps,
            guidance=arguments.guidance,
            seed=arguments.seed,
            size=arguments.size,
            layout=arguments.layout,
            delay=arguments.delay if arguments.layout else 0.0,
            on_step=lambda step, num_steps: bar.update(),
        )
    regions = arguments.output / "group-regions.png"
    save_image(preview([person.mask for person in people]), regions)
    files = [arguments.output / f"group-{arguments.seed + index}.png" for index in range(len(images))]
    for image, file in zip(images, files, strict=True):
        save_image(image, file, "generated")
    return {
        "people": [{"name": person.made.name, "text": person.text(prompt)} for person in people],
        "overlaps": overlaps(people),
        "regions": str(regions),
        "images": [str(file) for file in files],
    }


def read_people(arguments: Namespace) -> Sequence[Person]:
    """Everybody, with their region. Raises MagiCaptureError for what cannot be read or does not fit together."""
    from .people import Person, check_people

    files, abouts = arguments.person, arguments.about or [""] * len(arguments.person)
    if len(abouts) != len(files):
        raise MagiCaptureError("--about: give it once for each --person, in the same order, or not at all")
    regions = read_regions(arguments)
    return check_people(
        [
            Person(made=read_made(file), mask=mask, prompt=about)
            for file, mask, about in zip(files, regions, abouts, strict=True)
        ]
    )


def read_made(file: Path) -> Artifact | SefiIdentity:
    """What the file holds, a LoRA or an identity."""
    from .. import artifact
    from ..sefi import identity

    return identity.load(file) if identity.is_identity(file) else artifact.load(file)


def read_regions(arguments: Namespace) -> list[Tensor]:
    """A mask [1,H,W] for each person: the user's, or boxes; without either they stand side by side."""
    from ..images import load_mask
    from .layout import boxes, grid, read_boxes

    count, size = len(arguments.person), arguments.size or (512, 512)
    if arguments.mask and arguments.boxes:
        raise MagiCaptureError("--mask, --boxes: give one of them")
    if arguments.mask:
        regions = [load_mask(file) for file in arguments.mask]
    else:
        regions = list(boxes(read_boxes(arguments.boxes), size) if arguments.boxes else grid(1, count, size))
    if len(regions) != count:
        option = "--mask" if arguments.mask else "--boxes"
        raise MagiCaptureError(f"{option}: there are {len(regions)} for {count} people; give one for each --person")
    return regions


def pixels(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> (H, W)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()) or min(int(width), int(height)) < GRID:
        raise ArgumentTypeError(f"{text!r} is no WIDTHxHEIGHT, such as 768x512")
    if int(width) % GRID or int(height) % GRID:
        raise ArgumentTypeError(f"{text} is not in multiples of {GRID}")
    return int(height), int(width)
