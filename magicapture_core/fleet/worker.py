"""One job: train, make pictures, measure them. In: a job and where results go. Out: `result.json`, as told.

Knows nothing of Ray: it calls `report` between two steps, which may raise to stop it. Whatever stops it, the next
attempt goes on from what the job's place holds, and ends with the same weights and pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .storage import Place, locked

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..kept import Result
    from .jobs import Job

Report = Callable[[str, int, int], None]  # what is done, its step, of how many
Told = dict[str, Any]
ORPHAN_SECONDS = 120.0  # longer than Ray takes to end the workers of a command that was killed


def run_job(job: Job, report: Report, results: str) -> Told:
    """The job's result, from its place where it is finished. Raises MagiCaptureError for what the user can mend."""
    place = Place(results, job.folder)
    with locked(place.work, ORPHAN_SECONDS, f"{job.name}: another process works on it; end that one first"):
        if done := place.read_result(job.keys.all):
            return done
        place.fetch()
        seconds: dict[str, float] = {}
        try:
            trained = timed(seconds, "train", lambda: train(job, place, report))
            images = timed(seconds, "pictures", lambda: make_pictures(job, trained.files[0], place, report))
            figures = timed(seconds, "evaluate", lambda: measure(job, place, report)) if job.judges and images else {}
        except BaseException:
            place.keep()  # the state of the last step
            raise
        told = {
            "job": job.name,
            "key": job.keys.all,
            "subject": job.subject.name,
            "style": job.style.name,
            "method": job.method,
            "seed": job.config.seed,
            "lora": trained.files[0].name,
            "best": [file.name for file in trained.best_files[:1]],
            "images": [image.relative_to(place.work).as_posix() for image in images],
            "steps": len(trained.told.history),
            "loss": trained.told.history[-1][-1],
            "figures": figures,
            "resumed_from_step": trained.resumed_from,
            "seconds": seconds,
            "settings": job.config.model_dump(mode="json"),
        }
        place.finish(told)
    return told


def timed(seconds: dict[str, float], name: str, stage: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    made = stage()
    seconds[name] = round(time.perf_counter() - started, 2)
    return made


def train(job: Job, place: Place, report: Report) -> Result:
    """The kept result, or the training from its last state on; as the command `train` does it."""
    from .. import recipe
    from ..dataset import check_kind
    from ..faces import load_face_detector
    from ..kept import Kept, result_key
    from ..likeness import check_targets
    from ..recognisers import load_recogniser
    from ..run import TrainStep
    from ..terminal import pick_device, read_backbone, read_portraits
    from ..watch import Watch

    config, folder = job.config, place.work / "magicapture" / job.lora_name
    given = {"subject": (job.subject, job.subject_masks), "style": (job.style, job.style_masks)}
    photos = {
        side: read_portraits(*paths, config.resolution, side, config.kind)[0]  # pyright: ignore[reportArgumentType]
        for side, paths in given.items()
    }
    backbone = read_backbone(job.checkpoint)
    recogniser = load_recogniser(job.recogniser) if job.recogniser else None
    check_kind(config, recogniser)
    if recogniser is not None:
        check_targets(photos)
    watch = Watch(
        every=max(1, config.num_steps // job.looks) if job.looks else 0,
        detector=load_face_detector() if recogniser is not None else None,
        on_sampling=lambda step, num_steps: report("sample", step, num_steps),
    )
    kept = Kept(folder, result_key(backbone, photos, config, recogniser, watch))

    def save(made: Artifact) -> list[Path]:
        return save_anew(made, place.work)

    state = None

    def stepped(step: TrainStep[Any]) -> None:
        nonlocal state
        if kept.state_file.is_file() and kept.state_file.stat().st_mtime_ns != state:
            state = kept.state_file.stat().st_mtime_ns
            place.keep()
        report("train", step.step, step.num_steps)

    result = recipe.personalize(
        backbone,
        photos,
        config,
        name=job.lora_name,
        folder=folder,
        save=save,
        key=kept.key,
        recogniser=recogniser,
        device=pick_device(None),
        on_step=stepped,
        watch=watch,
    )
    place.keep()
    return result


def save_anew(made: Artifact, folder: Path) -> list[Path]:
    """Under its own name: what is there is left of an attempt that was killed before it told of its files."""
    from .. import artifact as artifacts

    for file in folder.glob(f"{made.name}*"):
        file.unlink()
    return list(artifacts.save(made, folder))


def make_pictures(job: Job, lora: Path, place: Place, report: Report) -> list[Path]:
    """As `generate` makes them; those that are there are kept."""
    import torch

    from .. import artifact as artifacts
    from ..fitting import fast_dtype
    from ..images import save_image
    from ..sampler import generate
    from ..terminal import pick_device, read_backbone

    asked = job.pictures
    files = [place.work / job.images / f"{asked.seed + index:06d}.png" for index in range(asked.images)]
    groups = [files[start : start + asked.batch] for start in range(0, asked.images, asked.batch)]
    missing = [group for group in groups if not all(file.is_file() for file in group)]
    if not missing:
        return files
    artifact, backbone, device = artifacts.load(lora), read_backbone(job.checkpoint), torch.device(pick_device(None))
    backbone.to(device, fast_dtype(device))
    for group in missing:
        images = generate(
            backbone,
            artifact,
            asked.prompt or artifact.composed_prompt,
            negative_prompt=asked.negative_prompt,
            num_images=len(group),
            num_steps=asked.num_steps,
            guidance=asked.guidance,
            seed=int(group[0].stem),
            on_step=lambda step, num_steps, group=group: report("pictures", files.index(group[0]), len(files)),
        )
        for image, file in zip(images, group, strict=True):
            save_image(image, file, "generated")
        place.keep()
    return files


def measure(job: Job, place: Place, report: Report) -> dict[str, float]:
    """As `evaluate` does: the mean of every metric that the networks tell. Table, figures and sheet lie beside."""
    from argparse import ArgumentParser

    from ..evaluate import command

    report("evaluate", 0, 1)
    folders = {"subject": job.subject, "style": job.style, "output": place.work / job.evaluation}
    options = {**folders, **{name: judge for name, judge in job.judges.items() if judge is not None}}
    command.add_arguments(parser := ArgumentParser())
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    found = command.evaluate(parser.parse_args([str(place.work / job.images), *flags]))["metrics"]
    return {metric: summary["mean"] for metric, summary in found.items() if "mean" in summary}
