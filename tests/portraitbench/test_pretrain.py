"""Pretraining: a stopped stage goes on as if it never had, batches hold what they say, weights know their world."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from magicapture_core.backbone import TINY_FOLDER, load_tokenizer, noise_scheduler
from magicapture_core.tokens import Vocabulary
from magicapture_core.types import MagiCaptureError
from portraitbench import nets, world
from portraitbench.labels import STYLE_WORDS, UNSEEN, style_labels, style_words
from portraitbench.pictures import MOST_SUBJECTS, to_arrays
from portraitbench.pretrain import stage, text, unet
from portraitbench.pretrain.judges import scene_of
from portraitbench.pretrain.people import PHOTOS, People, denoise, paint_person
from portraitbench.pretrain.recognisers import PEOPLE, contrast, draw, verification_accuracy
from portraitbench.pretrain.stage import Stage
from portraitbench.pretrain.vae import CROP, Crops, psnr
from portraitbench.views import face_crops, hide_face, place_window
from tests.small import same, weights

STAGE = Stage(name="line", num_steps=12, learning_rate=0.1, warmup_steps=2, average=0.5)


class Stopped(Exception):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CACHE", tmp_path)
    monkeypatch.setattr(stage, "LOGS", tmp_path)
    monkeypatch.setattr(stage, "SAVE_SECONDS", -1)
    monkeypatch.setattr(stage, "LOG_STEPS", 4)
    return tmp_path


def fit(stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    count = iter(range(100))

    def draw(generator: np.random.Generator) -> tuple[torch.Tensor]:
        if next(count) == stop_at:
            raise Stopped
        return (torch.from_numpy(generator.standard_normal((8, 3), np.float32)),)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return stage.run(STAGE, nn.Linear(3, 1), draw, loss, lambda model: {"weight": float(model.weight.detach().sum())})


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_stopped_stage_goes_on_bit_for_bit(folder, stop_at):
    whole = weights(fit())
    STAGE.state_file.unlink()
    with pytest.raises(Stopped):
        fit(stop_at)
    assert same(weights(fit()), whole)


def test_a_state_belongs_to_one_recipe_and_to_the_weights_it_learned_from(folder):
    upstream = folder / "vae"
    upstream.write_bytes(b"one")
    first = replace(STAGE, learns_from=(upstream,))
    files = {STAGE.state_file, replace(STAGE, num_steps=13).state_file, first.state_file}
    upstream.write_bytes(b"another")
    assert len(files | {first.state_file}) == 4
    assert STAGE.state_file == replace(STAGE).state_file


def test_the_log_has_a_line_every_few_steps(folder):
    fit()
    lines = [json.loads(line) for line in (folder / "line.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_weights_of_another_world_are_refused(tmp_path, monkeypatch):
    net = nn.Linear(2, 2)
    path = nets.save_weights(net, tmp_path / "net.safetensors")
    loaded = nets.load_weights(path)
    torch.testing.assert_close(loaded["weight"], net.weight.detach().half().float())
    monkeypatch.setattr(nets, "WORLD_VERSION", 2)
    with pytest.raises(MagiCaptureError, match=r"world 1.*world 2.*make pretrain"):
        nets.load_weights(path)
    with pytest.raises(MagiCaptureError, match="make pretrain"):
        nets.load_weights(tmp_path / "missing.safetensors")


def test_a_crop_and_its_mask_stay_together():
    pictures = to_arrays([world.example("tuning", index, 64, 128) for index in range(4)])
    marked = replace(pictures, images=np.where(pictures.masks[..., None], 255, pictures.images // 2).astype(np.uint8))
    pixel_values, masks = Crops([marked]).draw(np.random.default_rng(0))
    assert pixel_values.shape[1:] == (3, CROP, CROP)
    assert torch.equal((pixel_values == 1).all(1, keepdim=True).float(), masks)
    assert masks.any()


def test_psnr_by_hand():
    """An error of 0.2 in -1..1 everywhere: 10 log10(4 / 0.04) = 20 dB; where nothing differs outside, only inside."""
    first = torch.zeros(1, 3, 2, 2)
    second = first.clone()
    second[..., 0] = 0.2
    assert float(psnr(first, second, torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]))) == pytest.approx(20)
    assert float(psnr(first, second, torch.ones(1, 1, 2, 2))) == pytest.approx(20 + 10 * np.log10(2))


def test_style_labels_name_what_is_drawn_and_hide_what_is_not():
    for index in range(40):
        scene = world.example("tuning", index).scene
        for subject in scene.subjects:
            words = style_words(subject, scene.setting)
            labels = dict(zip(STYLE_WORDS, style_labels(subject, scene.setting), strict=True))
            shown = {name: STYLE_WORDS[name][label] for name, label in labels.items() if label != UNSEEN}
            assert shown == words
            assert ("fringe" in words) == (subject.identity.kind == "person" and words["hat"] == "none")


def test_a_scene_is_known_without_painting_it():
    assert scene_of("pretrain", 5, 64, 96) == world.example("pretrain", 5, 64, 96).scene


def test_a_caption_is_taught_by_what_stands_in_each_place():
    generator = np.random.default_rng(3)
    scenes = [text.draw_caption(generator)[1] for _ in range(200)]
    scene = next(s for s in scenes if [x.identity.kind for x in s.subjects] == ["person", "cat"])
    facts, traits = text.targets(scene)
    columns = list(text.CHOICES)
    person = scene.subjects[0]
    assert STYLE_WORDS["hair_color"][facts[0, columns.index("hair_color")]] == person.look.hair_color
    assert facts[:, columns.index("cat")].tolist() == [0, 1, UNSEEN]
    assert facts[1, columns.index("hair_color")] == UNSEEN
    assert traits.isnan().all(1).tolist() == [False, True, True]
    np.testing.assert_allclose(traits[0], person.identity.vector(), rtol=1e-6)


def test_the_reader_looks_at_words_alone_and_empty_places_teach_nothing():
    torch.manual_seed(0)
    model = text.Reader()
    vocabulary = Vocabulary(load_tokenizer(TINY_FOLDER / "tokenizer"), {})
    batch = text.draw(vocabulary, 4, np.random.default_rng(0))
    loss = text.loss(model, *batch)
    loss.backward()
    assert loss.isfinite()
    assert model.text_encoder.embeddings.token_embedding.weight.grad[batch[0][0, 1]].abs().sum() > 0
    end = model.text_encoder.embeddings.token_embedding.weight.grad[vocabulary.tokenizer.eos_token_id]
    assert end.abs().sum() == 0


def test_every_noise_level_counts_alike():
    """A UNet that says zero errs by the noise itself, which weighs abar_t^(-3/4)."""
    model = unet.Denoiser()
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    noise = torch.full((2, 4, 16, 16), 2.0)
    loss = model(torch.zeros_like(noise), noise, torch.tensor([0, 999]), torch.zeros(2, 77, 128))
    abar = noise_scheduler().alphas_cumprod[[0, 999]]
    torch.testing.assert_close(loss, (4 / abar**0.75).mean())


def test_people_keep_their_face_and_change_the_rest():
    first, second, other = (paint_person("tuning", index) for index in (0, 1, PHOTOS))
    [one], [two], [three] = first.scene.subjects, second.scene.subjects, other.scene.subjects
    assert one.identity == two.identity != three.identity
    assert one.look != two.look


def test_a_prediction_is_nearer_to_the_picture_under_its_own_caption():
    backbone = nets.load_tiny()
    pictures = to_arrays([paint_person("tuning", index * PHOTOS) for index in range(8)])
    with torch.no_grad():
        latents = backbone.vae.encode(pictures.tensor() * 2 - 1).latent_dist.mean
    others = replace(pictures, captions=np.roll(pictures.captions, 1))
    own, other = ((denoise(set_, latents, backbone) - latents).square().mean() for set_ in (pictures, others))
    assert own < 0.8 * other
    assert own < 0.5 * latents.var()


def test_a_batch_holds_pairs_of_the_views_that_were_asked_for():
    shape = (PEOPLE * PHOTOS, 64, 64, 3)
    shades = {"pictures": 0, "rebuilt": 100, "predicted": 200}
    landmarks = np.tile(paint_person("tuning", 0).faces[0].landmarks, (PEOPLE * PHOTOS, 1, 1))
    people = People({name: np.full(shape, shade, np.uint8) for name, shade in shades.items()}, landmarks)
    faces, names = draw(people, ("rebuilt", "predicted"), np.random.default_rng(0))
    assert names.view(-1, 2).diff().eq(0).all()
    assert len(names.unique()) == PEOPLE
    gains = (faces[:, 0, 24, 24] + 1) / 2 * 255
    dark, bright = gains < 150, gains >= 150
    assert dark.any()
    assert bright.any()
    assert ((gains[dark] / 100 - 1).abs() < 0.16).all()
    assert ((gains[bright] / 200 - 1).abs() < 0.16).all()


def test_landmarks_lie_where_the_face_is_in_the_crop_and_the_window():
    picture = world.example("tuning", 3, 64, 128)
    arrays = to_arrays([picture])
    count = len(picture.faces)
    assert np.isnan(arrays.landmarks[0]).any((1, 2)).tolist() == [False] * count + [True] * (MOST_SUBJECTS - count)
    landmarks = torch.from_numpy(arrays.landmarks[0, :1])
    mask = torch.from_numpy(arrays.masks)[:, None].float()
    assert face_crops(mask, landmarks)[0, 0, 20:40, 16:32].mean() > 0.6  # in -1..1
    window, matrix = place_window(mask[0].expand(3, -1, -1), 0, count)
    inside = (landmarks[0] @ matrix[:, :2].T + matrix[:, 2]).round().long()
    assert window[0, inside[:, 1], inside[:, 0]].mean() > 0.7
    hidden = hide_face(window, landmarks[0] @ matrix[:, :2].T + matrix[:, 2])
    assert hidden[3, inside[2, 1], inside[2, 0]] == 1
    assert hidden[:3, inside[2, 1], inside[2, 0]].abs().max() < 1e-6


def test_contrast_and_verification_by_hand():
    """Two people on two axes are told apart without fail; everybody alike is a coin's toss."""
    apart = torch.eye(2).repeat_interleave(2, 0)
    assert float(contrast(apart)) == pytest.approx(float(torch.log(torch.tensor(1 + 2 * np.exp(-10.0)))), abs=1e-6)
    faces = torch.eye(3)[:, None].expand(3, PHOTOS, 3)
    assert verification_accuracy(faces, faces) == 1
    alike = torch.ones(3, PHOTOS, 3)
    assert verification_accuracy(alike, alike) == pytest.approx(0.5, abs=0.02)
