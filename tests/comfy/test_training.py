"""Training as a user queues it: progress, files, the kept result, Cancel."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from .journeys import CHECKPOINT, defaults, node, stock, training
from .server import ComfyServer, Events, Prompt, Run
from .test_pack import text_to_image
from .trees import PACK

STEP = re.compile(r"step (\d+) of (\d+)")
TRAIN, REPORT = "8", "7"
SAMPLES = PACK / "magicapture_core" / "tiny" / "samples"
PHOTO = "me/one.png"  # in the input folder


def loras(server: ComfyServer, name: str) -> list[str]:
    return sorted(path.name for path in (server.base / "models" / "loras").glob(f"{name}*.safetensors"))


def report(run: Run) -> str:
    return "".join(run.outputs[REPORT]["text"])


def steps_seen(events: Events) -> list[int]:
    return [int(found[1]) for text in events.texts if (found := STEP.search(text))]


@dataclass(frozen=True)
class Trained:
    """A training of a photo in the input folder, as it was queued first. plain: a stock picture before it."""

    prompt: Prompt
    run: Run
    events: Events
    plain: np.ndarray


@pytest.fixture(scope="module")
def trained(server: ComfyServer) -> Trained:
    plain = text_to_image(server, "a cat")
    with Image.open(SAMPLES / "person_1.jpg") as photo:
        server.add_image(photo.convert("RGB"), PHOTO)
    prompt = training(server.object_info(), "kept")
    prompt["2"]["inputs"]["folder"] = "me"
    with server.listen() as events:
        run = server.run(prompt)
    return Trained(prompt, run, events, plain)


def test_a_training_tells_shows_and_names_itself(server: ComfyServer, trained: Trained) -> None:
    """Bar, sample picture, text, and files; the model of the others stays as it was."""
    assert len(trained.events.previews) == 1
    assert min(trained.events.previews[0].size) >= 64
    assert steps_seen(trained.events)[-1] == 3
    assert "Estimated before the start" in report(trained.run)
    assert len(server.images(trained.run, TRAIN)) == 1
    assert loras(server, "kept") == ["kept.safetensors"]
    with safe_open(server.base / "models" / "loras" / "kept.safetensors", "np") as file:
        assert file.metadata()["magicapture.format"] == "1"
        assert file.metadata()["modelspec.architecture"].startswith("stable-diffusion-v1")
        assert str(server.base) not in "".join(file.metadata().values())
    assert (text_to_image(server, "a cat") == trained.plain).all()


def test_the_lora_socket_fits_the_stock_loader(server: ComfyServer, trained: Trained) -> None:
    """Core's Load LoRA Model takes the training's output as it is, and the picture changes."""
    info, seen = server.object_info(), len(server.log())
    loader = node("LoraModelLoader", **defaults(info, "LoraModelLoader") | {"model": ["1", 0], "lora": [TRAIN, 1]})
    loader["inputs"]["strength_model"] = 100.0  # three steps move little
    patched = server.run(trained.prompt | {"30": loader} | stock(["30", 0], ["1", 1], "a cat"))
    plain = server.run(trained.prompt | stock(["1", 0], ["1", 1], "a cat"))
    pictures = [np.asarray(server.images(run, "19")[0].convert("RGB"), dtype=np.int16) for run in (patched, plain)]
    assert np.abs(pictures[0] - pictures[1]).max() > 2
    assert "not loaded" not in server.log()[seen:].lower()


def test_a_second_queue_trains_anew_where_something_changed(server: ComfyServer, trained: Trained) -> None:
    """At once when nothing did; anew when one pixel of a photo did, under its old name, and when the file is gone."""
    server.free()
    with server.listen() as events:
        again = server.run(trained.prompt)
    assert "Nothing has changed" in report(again)
    assert not steps_seen(events)
    assert loras(server, "kept") == ["kept.safetensors"]

    with Image.open(server.base / "input" / PHOTO) as picture:
        picture.load()
    middle = (picture.width // 2, picture.height // 2)
    red, *others = picture.getpixel(middle)  # pyright: ignore[reportGeneralTypeIssues]
    picture.putpixel(middle, ((red + 128) % 256, *others))
    server.add_image(picture, PHOTO)
    assert "Nothing has changed" not in report(server.run(trained.prompt))
    assert loras(server, "kept") == ["kept.safetensors", "kept_2.safetensors"]

    (server.base / "models" / "loras" / "kept_2.safetensors").unlink()
    run, _ = cancel_after(server, trained.prompt, step=1)
    assert run.interrupted


def test_cancel_stops_within_a_step_and_goes_on(server: ComfyServer) -> None:
    """Cancel while a step runs: no file, a state; the same queue again starts behind the last step and ends."""
    prompt = training(server.object_info(), "cancelled", tuning_num_steps=7)
    run, seen = cancel_after(server, prompt, step=2)
    assert run.interrupted
    assert seen <= 4  # the step that ran when Cancel arrived may end; a busy machine may be one further
    assert not loras(server, "cancelled")
    (state,) = (server.base / "output" / "magicapture" / "cancelled").glob("state-*.safetensors")
    with safe_open(state, "np") as file:
        done = int(file.get_tensor("step"))
    assert 2 <= done <= 4
    with server.listen() as events:
        assert not server.run(prompt).interrupted
    assert steps_seen(events)[0] == done + 1
    assert steps_seen(events)[-1] == 8
    assert loras(server, "cancelled") == ["cancelled.safetensors"]
    assert not state.exists()


def cancel_after(server: ComfyServer, prompt: Prompt, step: int) -> tuple[Run, int]:
    """Queues, and presses Cancel when the text of a step is seen. Returns the run and the last step that was seen."""
    with server.listen() as events:
        prompt_id = server.queue(prompt)
        deadline = time.monotonic() + 300
        while not any(number >= step for number in steps_seen(events)) and time.monotonic() < deadline:
            time.sleep(0.02)
        server.interrupt()
        run = server.wait(prompt_id)
    return run, steps_seen(events)[-1]


def test_photos_of_one_person_and_their_second_queue(server: ComfyServer) -> None:
    """One identity of all four photos; at once when nothing changed; and it is drawn."""
    info, folder = server.object_info(), server.base / "models" / "sefi_identities"
    widgets = defaults(info, "MagiCaptureTrainSeFiIdentity")
    widgets |= {"name": "one", "resolution": 64, "num_steps": 1, "preview_every": 0}
    checkpoint = {"model": ["1", 0], "clip": ["1", 1]}
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node("MagiCaptureLoadPhotos", folder="sample: person"),
        REPORT: node("PreviewAny", source=[TRAIN, 3]),
        TRAIN: node("MagiCaptureTrainSeFiIdentity", **checkpoint, vae=["1", 2], images=["2", 0], **widgets),
        "9": node("MagiCaptureApplySeFiIdentity", **checkpoint, identity=[TRAIN, 0], word=""),
        **stock(["9", 0], ["9", 1], "a photo of <person> wearing sunglasses"),
    }
    with server.listen() as events:
        run = server.run(prompt)
    assert steps_seen(events)[-1] == 1
    assert [f"+ photo {number}: one face" in report(run) for number in range(1, 5)] == [True] * 4
    assert len(server.images(run, TRAIN)) == len(server.images(run, "19")) == 1
    assert [path.stem for path in folder.glob("one*.safetensors")] == ["one"]

    server.free()
    assert "Nothing has changed" in report(server.run(prompt))
    assert [path.stem for path in folder.glob("one*.safetensors")] == ["one"]


def test_a_name_that_is_no_name_is_refused(server: ComfyServer) -> None:
    """A path in the name is answered with one line and writes nothing."""
    prompt = training(server.object_info(), "../../escaped")
    try:
        server.run(prompt)
        message = ""
    except AssertionError as error:
        message = str(error).splitlines()[0]
    assert "escaped" in message
    assert not list(server.base.parent.rglob("escaped*"))
