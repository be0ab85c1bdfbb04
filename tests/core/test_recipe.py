"""The whole line at tiny size: what is on the disk after a finish, a cancel, a resume, and when memory runs out."""

import weakref

import pytest
import torch
from safetensors.torch import load_file

from magicapture_core import artifact, fitting, recipe
from magicapture_core.backbone import tiny
from magicapture_core.estimate import _kept_bytes
from magicapture_core.images import save_image
from magicapture_core.kept import TERMS, Kept, Result, Told, forget, missing_files, result_key
from magicapture_core.marks import read_mark
from magicapture_core.types import MagiCaptureError, Portraits
from magicapture_core.watch import Watch
from tests.core.test_artifact import make_artifact
from tests.small import portraits, same, small_config, weights

SUBJECT, STYLE = portraits(2), portraits(3, seed=1)


class Stop(BaseException):
    """As a host's own way to say stop."""


def personalize(folder, stop_after=None, config=None, backbone=None, **options):
    def on_step(step):
        steps.append(step.step)
        if step.step == stop_after:
            raise Stop

    steps: list[int] = []
    options.setdefault("on_step", on_step)
    result = recipe.personalize(
        backbone or tiny(),
        {"subject": SUBJECT, "style": STYLE},
        config or small_config(),
        name="someone",
        folder=folder / "work",
        save=lambda made: list(artifact.save(made, folder)),
        **options,
    )
    return result, steps


def test_a_finished_run_leaves_three_files_and_no_state(tmp_path):
    result, steps = personalize(tmp_path)
    assert steps == [1, 2, 3, 4, 5, 6]
    names = ["someone.safetensors", "someone_subject.safetensors", "someone_style.safetensors"]
    assert [file.name for file in result.files] == names
    assert len(result.told.history) == 6
    assert [path.name for path in (tmp_path / "work").iterdir()] == [f"result-{result.key[:16]}.json"]
    loaded = artifact.load(result.files[0])
    assert loaded.architecture == "magicapture-tiny"
    assert [token.placeholder for token in loaded.tokens] == ["<subject>", "<style>"]


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_stopped_run_resumes_to_the_same_file(tmp_path, stop_after):
    whole, _ = personalize(tmp_path / "whole")
    with pytest.raises(Stop):
        personalize(tmp_path / "stopped", stop_after=stop_after)
    assert not list((tmp_path / "stopped").glob("*.safetensors"))
    resumed, steps = personalize(tmp_path / "stopped")
    assert steps == list(range(stop_after + 1, 7))
    assert (whole.resumed_from, resumed.resumed_from) == (0, stop_after)
    assert resumed.told.history == whole.told.history
    for left, right in zip(whole.files, resumed.files, strict=True):
        assert same(load_file(left), load_file(right))


@pytest.mark.parametrize("last", [1, 3, 4])
def test_out_of_memory_is_one_line_gives_memory_back_and_resumes(tmp_path, last):
    """In the step after `last`, the first of phase 2 among them, and again with checkpointing."""
    whole, _ = personalize(tmp_path / "whole")
    backbone, activations, done = tiny(), [], []
    before = weights(backbone.unet, backbone.text_encoder)

    def run_out(module, inputs):
        if len(done) == last:
            activations.append(weakref.ref(inputs[0]))
            raise torch.OutOfMemoryError("no GPU has this much")

    backbone.unet.conv_out.register_forward_pre_hook(run_out)
    with pytest.raises(MagiCaptureError, match=r"^out of memory, with gradient_checkpointing.*resolution") as failure:
        personalize(tmp_path / "short", backbone=backbone, on_step=done.append)
    assert "\n" not in str(failure.value)
    assert [activation() for activation in activations] == [None, None]
    assert same(weights(backbone.unet, backbone.text_encoder), before)

    resumed, steps = personalize(tmp_path / "short", config=small_config(gradient_checkpointing=True))
    assert steps == list(range(last + 1, 7))
    assert resumed.told.history == whole.told.history
    assert same(load_file(whole.files[0]), load_file(resumed.files[0]))


@pytest.mark.parametrize("last", [0, 2, 3])
def test_a_run_that_fits_with_checkpointing_goes_on_by_itself(tmp_path, last):
    """Memory runs out in the step after `last` as long as three pictures go through at once."""
    whole, _ = personalize(tmp_path / "whole")
    backbone, done, said = tiny(), [], []

    def run_out(module, inputs):
        if len(done) == last and len(inputs[0]) > 1:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")  # no torch.OutOfMemoryError

    def on_step(step):
        done.append(step.step)

    backbone.unet.register_forward_pre_hook(run_out)
    result, _ = personalize(
        tmp_path / "short", config=small_config(batch_size=3), backbone=backbone, on_step=on_step, say=said.append
    )
    assert done == [1, 2, 3, 4, 5, 6]
    assert len(said) == 1
    assert "gradient_checkpointing and batch_size 1" in said[0]
    assert [row[-1] for row in result.told.history] == pytest.approx([row[-1] for row in whole.told.history], rel=1e-3)


def test_a_loss_that_is_not_a_number_keeps_the_last_good_state(tmp_path):
    """The fifth step's: the state of the fourth is on the disk as it would be after a cancel there."""
    with pytest.raises(Stop):
        personalize(tmp_path / "stopped", stop_after=4)
    backbone, done = tiny(), []

    def spoil(module, inputs, output):
        if len(done) == 4:
            output.sample[:] = float("nan")

    backbone.unet.register_forward_hook(spoil)
    with pytest.raises(MagiCaptureError, match=r"the loss is not a number at step 5.*learning rates"):
        personalize(tmp_path / "spoilt", backbone=backbone, on_step=done.append)
    states = [load_file(next((tmp_path / run / "work").glob("state-*"))) for run in ("stopped", "spoilt")]
    assert same(*states)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_checkpoint_with_nan_in_it_is_named(tmp_path, part):
    backbone = tiny()
    with torch.no_grad():
        list(getattr(backbone, part).parameters())[7].view(-1)[-1] = float("nan")
    with pytest.raises(MagiCaptureError, match=f"the checkpoint's {part} holds numbers that are not finite, in "):
        personalize(tmp_path, backbone=backbone)


@pytest.mark.parametrize("count", [1, 500])
def test_one_photo_and_five_hundred(tmp_path, count):
    recipe.personalize(
        tiny(),
        {"subject": portraits(count), "style": portraits(1)},
        small_config(inversion={"num_steps": 1}, tuning={"num_steps": 1}),
        name="many",
        folder=tmp_path,
        save=lambda made: list(artifact.save(made, tmp_path)),
    )
    assert artifact.load(tmp_path / "many.safetensors").lora


def test_a_stop_on_the_last_step_comes_too_late_to_lose_anything(tmp_path):
    with pytest.raises(Stop):
        personalize(tmp_path, stop_after=6)
    said = []
    found, steps = personalize(tmp_path, say=said.append)
    assert not steps
    assert said == ["Nothing has changed since the last training: its result is returned."]
    assert len(found.told.history) == found.resumed_from == 6
    assert [file.stem for file in found.files] == ["someone", "someone_subject", "someone_style"]


def test_each_configuration_keeps_its_own_result(tmp_path):
    configs = [small_config(seed=seed) for seed in (0, 1)]
    results = [personalize(tmp_path, config=config)[0] for config in configs]
    keys = [result_key(tiny(), {"subject": SUBJECT, "style": STYLE}, config) for config in configs]
    assert [Kept(tmp_path / "work", key).find_result() for key in keys] == results
    assert missing_files(tmp_path / "work") == []
    results[0].files[0].unlink()
    assert missing_files(tmp_path / "work") == [str(results[0].files[0])]


def test_what_only_costs_time_or_memory_does_not_decide_the_result():
    configs = [small_config(), small_config(batch_size=3), small_config(gradient_checkpointing=True)]
    assert len({result_key(tiny(), {"subject": SUBJECT, "style": STYLE}, config) for config in configs}) == 1


def test_a_key_that_the_caller_has_is_not_computed_again(tmp_path):
    key = result_key(tiny(), {"subject": SUBJECT, "style": STYLE}, small_config(seed=1))
    result, _ = personalize(tmp_path, key=key)
    assert Kept(tmp_path / "work", key).find_result() == result


def test_without_resume_it_starts_anew(tmp_path):
    with pytest.raises(Stop):
        personalize(tmp_path, stop_after=2)
    assert personalize(tmp_path, resume=False)[1][0] == 1


def test_a_result_is_found_until_anything_changes(tmp_path):
    config, work = small_config(), tmp_path / "work"
    result, _ = personalize(tmp_path)
    key = result_key(tiny(), {"subject": SUBJECT, "style": STYLE}, config)
    assert Kept(work, key).find_result() == result

    pixel, mask = SUBJECT.images.clone(), STYLE.masks.clone()
    pixel[0, 0, 0, 0] += 1 / 255
    mask[-1, 0, -1, -1] = 1 - mask[-1, 0, -1, -1]
    other_weight = tiny()
    with torch.no_grad():
        next(other_weight.text_encoder.parameters()).view(-1)[0] += 1e-3
    others = [
        result_key(tiny(), {"subject": Portraits(images=pixel, masks=SUBJECT.masks), "style": STYLE}, config),
        result_key(tiny(), {"subject": SUBJECT, "style": Portraits(images=STYLE.images, masks=mask)}, config),
        result_key(other_weight, {"subject": SUBJECT, "style": STYLE}, config),
        result_key(tiny(), {"subject": SUBJECT, "style": STYLE}, small_config(seed=1)),
        result_key(tiny(), {"subject": STYLE, "style": SUBJECT}, config),
    ]
    assert len({key, *others}) == 6
    assert [Kept(work, other).find_result() for other in others] == [None] * 5

    result.files[1].unlink()
    assert Kept(work, key).find_result() is None


def test_the_key_is_the_same_in_whatever_precision_the_weights_are_kept():
    half = tiny()
    half.to(torch.device("cpu"), torch.bfloat16)
    again = tiny()
    again.to(torch.device("cpu"), torch.bfloat16)
    again.to(torch.device("cpu"), torch.float32)
    assert len({result_key(b, {"subject": SUBJECT, "style": STYLE}, small_config()) for b in (half, again)}) == 1


def test_the_estimate_comes_first_and_does_not_disturb(tmp_path):
    said = []
    personalize(tmp_path, on_estimate=said.append)
    assert said[0].seconds_per_step > 0
    assert "minutes in all, sample pictures not counted" in str(said[0])
    weights = sum(p.numel() * 4 for part in (tiny().unet, tiny().text_encoder) for p in part.parameters())
    assert said[0].peak_bytes > weights


def test_a_damaged_state_is_named(tmp_path):
    with pytest.raises(Stop):
        personalize(tmp_path, stop_after=2)
    [state] = (tmp_path / "work").glob("state-*.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(MagiCaptureError, match=r"state-.*delete it"):
        personalize(tmp_path)


def test_nothing_to_train_is_an_error(tmp_path):
    with pytest.raises(MagiCaptureError, match="nothing to train"):
        personalize(tmp_path, config=small_config(inversion={"num_steps": 0}, tuning={"num_steps": 0}))


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "x" * 65])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(MagiCaptureError, match="name"):
        recipe.personalize(
            tiny(),
            {"subject": SUBJECT, "style": STYLE},
            small_config(),
            name=name,
            folder=tmp_path,
            save=lambda made: [],
        )


@pytest.mark.parametrize(("accumulate", "tried"), [(1, [16, 1]), (2, [16, 2, 1])])
def test_memory_is_halved_from_what_a_step_holds(tmp_path, accumulate, tried):
    """One composed item and one of the class, or two of each; phase 1 has as many."""
    sizes, result = [], Result(key="", files=[], told=Told())

    def attempt(config):
        sizes.append(config.batch_size)
        if config.batch_size > 1:
            raise torch.OutOfMemoryError("no GPU has this much")
        return result

    tuning = {"tasks": ("composed",), "class_images": 1}
    config = small_config(tuning=tuning, accumulate=accumulate, batch_size=16, gradient_checkpointing=True)
    sides = {"backbone": tiny(), "photos": {}, "recogniser": None, "kept": Kept(tmp_path, ""), "on_sampling": None}
    most_items = recipe.MagiCapture(config=config, say=pytest.fail, **sides).most_items
    assert fitting.within_memory(attempt, config, most_items, "resolution", lambda text: None) is result
    assert sizes == tried


def test_the_patience_of_an_object_is_refused():
    rex = small_config(kind="object", subject={"placeholder_token": "<rex>", "initializer_token": "cat"})
    with pytest.raises(MagiCaptureError, match="patience: the likeness of an object is not told"):
        recipe.check_patience(Watch(patience=2), rex, None)


# -- what lies beside the LoRA, and what a run leaves behind -----------------------------------------------------------


def test_the_last_sample_becomes_the_preview_and_is_no_reason_to_train(tmp_path):
    result, _ = personalize(tmp_path, watch=Watch(every=2))
    preview, kept = tmp_path / "someone.preview.png", Kept(tmp_path / "work", result.key)
    assert preview.read_bytes() == kept.sample(6).read_bytes() != kept.sample(2).read_bytes()
    assert read_mark(preview) == read_mark(next(kept.looks.iterdir())) == "generated"
    preview.unlink()
    assert missing_files(tmp_path / "work") == []
    assert personalize(tmp_path, watch=Watch(every=2))[1] == []
    assert preview.read_bytes() == kept.sample(6).read_bytes()
    again, _ = personalize(tmp_path, resume=False, watch=Watch(every=2))
    assert [file.stem for file in again.files] == ["someone_2", "someone_2_subject", "someone_2_style"]
    assert (tmp_path / "someone_2.preview.png").is_file()


def test_a_preview_that_cannot_be_written_is_told_and_the_training_is_done(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("magicapture_core.sharing.shutil.copyfile", full)
    said = []
    result, _ = personalize(tmp_path, watch=Watch(every=2), say=said.append)
    assert said == ["no preview beside someone.safetensors: [Errno 28] No space left on device"]
    assert all(file.is_file() for file in result.files)
    assert not (tmp_path / "someone.preview.png").exists()
    assert not list((tmp_path / "work").glob("state-*"))


def test_the_most_alike_step_has_its_own_sample_for_a_preview(tmp_path):
    config = small_config()
    key = "0" * 32
    kept = Kept(tmp_path / "work", key)
    for step in (4, 6):
        save_image(torch.full((3, 8, 8), step / 10), kept.sample(step), "generated")
    made = make_artifact(config=config.model_dump(mode="json"))
    files = list(artifact.save(made, tmp_path))
    kept.keep_candidate(4, lambda folder: artifact.save(made, folder))
    finished = Result(key=key, files=files, told=Told(history=[[0.0] * len(TERMS)] * 6, looks=[[4, 0.5], [6, 0.2]]))
    result = fitting.conclude(
        finished, kept, artifact.load, lambda made: list(artifact.save(made, tmp_path)), pytest.fail
    )
    assert result.best_files[0].name == "anna_best.safetensors"
    assert (tmp_path / "anna_best.preview.png").read_bytes() == kept.sample(4).read_bytes()
    assert (tmp_path / "anna.preview.png").read_bytes() == kept.sample(6).read_bytes()


def test_a_state_holds_what_was_learned_and_nothing_of_the_photos(tmp_path):
    """No latents and no embeddings of faces, which README and the help pages say."""
    with pytest.raises(Stop):
        personalize(tmp_path, stop_after=4, watch=Watch(every=2))
    [state] = (tmp_path / "work").glob("state-*.safetensors")
    kinds = {key.split(".")[0] for key in load_file(state)}
    assert {"step", "history", "looks", "looked_at", "parameter"} <= kinds
    assert kinds <= {"step", "history", "looks", "looked_at", "parameter", "optimizer", "scaler"}
    assert {path.name.split("-")[0] for path in (tmp_path / "work").iterdir()} == {"state", "samples", "looks"}


def test_forget_deletes_all_that_a_run_keeps_and_nothing_else(tmp_path):
    with pytest.raises(Stop):
        personalize(tmp_path, stop_after=4, watch=Watch(every=2))
    work = tmp_path / "work"
    half = work / f".{next(work.glob('state-*')).stem}-12345678"  # as a kill leaves it
    half.touch()
    mine = work / "samples-of-mine.txt"
    mine.touch()
    (tmp_path / "other").mkdir()
    for kept in (tmp_path / "other", tmp_path):
        with pytest.raises(MagiCaptureError, match="nothing is kept there"):
            forget(kept)
    assert (tmp_path / "other").is_dir()
    deleted = forget(work)
    assert sorted({path.name.lstrip(".").split("-")[0] for path in deleted}) == ["looks", "samples", "state"]
    assert half in deleted
    assert list(work.iterdir()) == [mine]
    mine.unlink()
    result, steps = personalize(tmp_path)
    assert steps[0] == 1
    assert [path.name[:7] for path in forget(work)] == ["result-"]
    assert not work.exists()
    assert all(file.is_file() for file in result.files)
    with pytest.raises(MagiCaptureError, match="nothing is kept there"):
        forget(work)


def test_an_estimate_lets_go_of_a_pass_without_a_way_back():
    """As one is that runs out of memory. A function may keep its own output; the next try has to find it freed."""
    with _kept_bytes() as kept:
        output = (2 * torch.ones(3, requires_grad=True)).sigmoid()
    assert kept[output.untyped_storage().data_ptr()] == 12
    seen = weakref.ref(output)
    del output
    assert seen() is None
