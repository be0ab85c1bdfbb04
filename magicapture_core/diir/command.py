"""The terminal's `restore-identity`: a picture and a person's file in, the picture with its faces theirs out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, get_args

from .. import options
from ..terminal import Result, progress, read_likeness, read_model, reference_photos
from ..types import MagiCaptureError
from .control import STRENGTH
from .restorer import GUIDANCE, NUM_STEPS, Mode


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="a .png or .jpg file")
    parser.add_argument("--lora", type=Path, metavar="FILE", help="the person, as what `train` made")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="the person, as what `sefi` made")
    options.add_model(parser)
    parser.add_argument(
        "--mode",
        choices=list(get_args(Mode)),
        default="restore",
        help="restore a face that was the person's, or swap another's for it, which goes farther (%(default)s)",
    )
    parser.add_argument(
        "--strength", type=options.share, metavar="X", help="how far, up to 1; by default that of the mode"
    )
    parser.add_argument("--num-steps", type=options.positive, default=NUM_STEPS, help="of the whole way (%(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=GUIDANCE, help="how closely to follow the prompt (%(default)s)"
    )
    parser.add_argument("--prompt", help="with {person} where they are named; a photo of them by default")
    parser.add_argument("--negative-prompt", default="")
    options.add_landmark_control(parser, "acts on the way back")
    parser.add_argument(
        "--landmark-strength", type=float, default=STRENGTH, metavar="X", help="of that one (%(default)s)"
    )
    parser.add_argument("--mask", type=Path, metavar="FILE", help="white where faces may change; everywhere by default")
    parser.add_argument(
        "--face-index",
        type=int,
        default=-1,
        metavar="N",
        help="this face alone, counted from 0 from the left; otherwise all become the person's",
    )
    options.add_comparison(parser)


def restore_identity(arguments: Namespace) -> Result:
    from dataclasses import asdict

    from ..artifact import load as load_artifact
    from ..face_outcomes import choose, mean_likeness
    from ..faces import load_face_detector
    from ..images import load_mask, load_photo, resize, save_image
    from ..marks import check_suffix, mark_after
    from ..restore import Rise
    from ..sefi.identity import load as load_identity
    from .pictures import PERSONAL_PROMPT, fill_personal, redraw_faces, report
    from .restorer import redrawing

    is_shown = arguments.mode == "swap" and arguments.landmark_control is not None  # the reference, to the ControlNet

    if arguments.lora is None and arguments.identity is None:
        raise MagiCaptureError("--lora, --identity: give one of them, or both; they say whose the faces are")
    check_suffix(arguments.output.name)
    image = load_photo(arguments.input)
    artifact = load_artifact(arguments.lora) if arguments.lora else None
    identity = load_identity(arguments.identity) if arguments.identity else None
    likeness = None if is_shown and arguments.recogniser is None else read_likeness(arguments)
    guard = Rise(likeness=likeness) if likeness else None
    walk = read_walk(arguments)
    detector = load_face_detector()
    faces = detector.detect(image)
    size = (image.shape[1], image.shape[2])
    region = resize(load_mask(arguments.mask)[None], size)[0] if arguments.mask else None
    prompt = fill_personal(arguments.prompt or PERSONAL_PROMPT, artifact, identity)
    backbone = read_model(arguments, is_exact=True)  # the way back is to end where the way there began
    total = 2 * (len(walk.sigmas(backbone.noise_scheduler.alphas_cumprod)) - 1)
    control = read_control(arguments, backbone, detector, is_shown)
    fates = choose(faces, region, arguments.face_index)
    with progress(total * fates.count("restored"), "there and back") as bar:
        identities = [identity] if identity else []
        person = redrawing(
            backbone, artifact, prompt, identities, arguments.negative_prompt, walk, control, lambda: bar.update()
        )
        with person as restorer:
            redrawn = redraw_faces(image, faces, restorer, region=region, face_index=arguments.face_index, guard=guard)
    is_changed = any(outcome.fate == "restored" for outcome in redrawn.outcomes)
    save_image(redrawn.image, arguments.output, mark_after(arguments.input, is_changed))
    before, after = mean_likeness(redrawn.outcomes) or (None, None)
    return {
        "output": str(arguments.output),
        "prompt": prompt,
        "faces": [asdict(outcome) for outcome in redrawn.outcomes],
        "likeness_before": before,
        "likeness_after": after,
        "report": report(guard, [redrawn]),
    }


def read_walk(arguments: Namespace) -> Any:
    from .restorer import STRENGTHS, Walk

    strength = STRENGTHS[arguments.mode] if arguments.strength is None else arguments.strength
    return Walk(strength=strength, num_steps=arguments.num_steps, guidance=arguments.guidance)


def read_control(arguments: Namespace, backbone: Any, detector: Any, is_shown: bool) -> Any:
    """The ControlNet, and what it is shown of a face; None without one. is_shown: the reference's first photo is."""
    from ..collage_controls import load_controlnet
    from ..images import load_photo
    from .control import Control
    from .landmarks import Landmarks, framed

    if arguments.landmark_control is None:
        return None
    net = load_controlnet(arguments.landmark_control, backbone.unet)
    another = None
    if is_shown and arguments.reference:
        another = framed(detector, load_photo(reference_photos(arguments.reference)[0]))
    landmarks = Landmarks(detector=detector, style=arguments.landmark_style, another=another)
    net.to(backbone.unet.device, backbone.unet.dtype).eval()
    return Control(net=net, landmarks=landmarks, strength=arguments.landmark_strength)
