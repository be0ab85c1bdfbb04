"""The object mode: what counts where, whose shape and look are asked for, and gradient all the way to the LoRA."""

from dataclasses import replace

import pytest
import torch

from magicapture_core.backbone import tiny
from magicapture_core.config import parse_config
from magicapture_core.dataset import ItemKey, encode, step_items
from magicapture_core.kept import result_key
from magicapture_core.object_losses import object_loss
from magicapture_core.object_terms import ObjectTarget, box_window, cut, features, square_box
from magicapture_core.objective import Terms
from magicapture_core.trainer import open_run, train
from magicapture_core.types import MagiCaptureError
from tests.small import SmallRecogniser, portraits, same, small_config, small_dino, weights

CAT = {"kind": "object", "subject": {"placeholder_token": "<subject>", "initializer_token": "cat"}}

PHOTOS = {"subject": portraits(3), "style": portraits(2, seed=1)}


def cat_config(**changes):
    return small_config(**CAT, **changes)


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def dataset(backbone):
    return encode(backbone, PHOTOS, cat_config(), small_dino())


def composed(count: int) -> list[ItemKey]:
    return [ItemKey(phase="tuning", step=step, group=0, task="composed") for step in range(count)]


def test_an_object_has_to_be_named():
    for word in ("person", ""):
        with pytest.raises(MagiCaptureError, match=r"kind='object': .* subject.initializer_token, such as dog"):
            parse_config({"kind": "object", "subject": {**CAT["subject"], "initializer_token": word}})
    assert (parse_config({}).noun(), parse_config(CAT).noun()) == ("person", "cat")
    artist = {"subject": {**CAT["subject"], "initializer_token": "woman"}}
    assert parse_config(artist).noun() == "person"


def test_the_reference_counts_everywhere_and_its_word_may_look_everywhere(dataset):
    """The supplement's unmasked reconstruction; source and composed items are those of a person."""
    config = cat_config(flip=False)
    source, reference, composite = (dataset.draw(config, [item]) for item in step_items(config, "tuning", 0))
    assert torch.equal(reference.loss_masks, torch.ones_like(reference.loss_masks))
    assert torch.equal(1 - reference.face_masks, torch.ones_like(reference.face_masks))
    mask = dataset.concepts["subject"].face_masks[0, :1]
    assert torch.equal(source.loss_masks, mask)
    assert torch.equal(composite.loss_masks, 1 - mask)
    assert all(
        "cat" in prompt and "person" not in prompt for b in (source, reference, composite) for prompt in b.prompts
    )


def test_each_subject_is_called_by_its_own_word_and_asked_for_its_own_shape(backbone):
    config = cat_config(flip=False, loss={"identity_max_timestep": 1000}).with_another("subject", "", "teapot")
    dataset = encode(backbone, {**PHOTOS, "subject_2": portraits(1, seed=7)}, config, small_dino())
    batch = dataset.draw(config, composed(20))
    assert dataset.looks is not None
    for prompt, target in zip(batch.prompts, batch.objects, strict=True):
        assert target is not None
        name = "subject_2" if "<subject_2> teapot" in prompt else "subject"
        assert ("<subject> cat" in prompt) == (name == "subject")
        assert any(torch.equal(target.keys[0], keys) for keys in dataset.looks.keys[name][0])
    assert len({"teapot" in prompt for prompt in batch.prompts}) == 2


def test_composed_items_below_the_limit_are_asked(dataset):
    config = cat_config(loss={"identity_max_timestep": 300})
    batch = dataset.draw(config, composed(40))
    assert batch.identity_items == (batch.timesteps < 300).nonzero().flatten().tolist() != []
    source, reference, _ = step_items(config, "tuning", 0)
    inversion = [replace(item, phase="inversion") for item in composed(20)]
    unweighted = cat_config(loss={"object_weight": 0})
    for settings, items in ((config, [source, reference]), (config, inversion), (unweighted, composed(20))):
        assert dataset.draw(settings, items).identity_items == []


def test_the_shape_is_a_subject_photos_and_the_look_the_style_photos(dataset):
    """Both mirrored with the item, and each subject photo has its turn."""
    config = cat_config(loss={"identity_max_timestep": 1000})
    looks, batch, seen = dataset.looks, dataset.draw(config, composed(40)), set()
    for target, face in zip(batch.objects, batch.face_masks, strict=True):
        mirrored = int(not face[0, :, 1].any())
        photo = next(i for i in range(2) if torch.equal(target.cls, looks.cls["style"][mirrored, i : i + 1]))
        assert torch.equal(target.box, looks.boxes["style"][mirrored, photo])
        seen |= {(mirrored, i) for i in range(3) if torch.equal(target.keys[0], looks.keys["subject"][mirrored, i])}
    assert len(seen) == 6


def test_the_mirror_is_the_mirrored_photo_and_mask(dataset):
    image, mask = PHOTOS["subject"].images[1].flip(-1), PHOTOS["subject"].masks[1].flip(-1)
    found = features(dataset.looks.dino, image, mask)
    torch.testing.assert_close(dataset.looks.keys["subject"][1, 1], found.keys[0])
    plain, mirrored = dataset.looks.boxes["style"][:, 0]
    left, top, right, bottom = plain.tolist()
    assert mirrored.tolist() == pytest.approx([64 - right, top, 64 - left, bottom])


def test_drawing_a_target_changes_nothing_else_of_an_item(backbone, dataset):
    """So the other terms of a run with DINO are those of a run without."""
    config = cat_config()
    plain = encode(backbone, PHOTOS, config)
    left, right = plain.draw(config, composed(5)), dataset.draw(config, composed(5))
    assert left.prompts == right.prompts
    assert left.objects == [None] * 5
    for name in ("latents", "noise", "timesteps", "loss_masks"):
        assert torch.equal(getattr(left, name), getattr(right, name))


def test_the_box_is_a_square_around_the_white_in_the_picture():
    """Rows 10..29, columns 4..13: the middle (9, 20), side 20 * 1.2 = 24 -> left -3, moved to 0."""
    mask = torch.zeros(1, 64, 64)
    mask[0, 10:30, 4:14] = 1
    assert square_box(mask).tolist() == [0, 8, 24, 32]
    assert square_box(torch.ones(1, 64, 64)).tolist() == [0, 0, 64, 64]
    assert square_box(torch.zeros(1, 64, 64)).tolist() == [0, 0, 64, 64]


def test_cut_takes_the_box():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut(image, torch.tensor([4.0, 8.0, 20.0, 24.0]), 16), image[..., 8:24, 4:20])
    halved = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(cut(image, torch.tensor([0.0, 0.0, 32.0, 32.0]), 16), halved)


def test_the_window_holds_the_box_and_a_margin():
    box = torch.tensor([25.0, 33.0, 40.0, 48.0])
    assert box_window(box, (16, 16), 4) == (slice(6, 14), slice(4, 12))
    assert box_window(box, (12, 11), 4) == (slice(6, 12), slice(4, 11))


def test_the_window_alone_has_the_features_of_the_whole_picture(backbone):
    """Against decoding all latents and cutting there; another place of the picture is much further off."""
    vae, dino = backbone.vae, small_dino(grid_size=8)
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 128)
    mask, elsewhere = torch.zeros(2, 1, 128, 128)
    mask[0, 40:80, 30:70] = elsewhere[0, 80:120, 80:120] = 1
    with torch.no_grad():
        latents = vae.encode(photo * 2 - 1).latent_dist.mean
        whole = vae.decode(latents).sample[0] / 2 + 0.5
        here, there = features(dino, whole, mask), features(dino, whole, elsewhere)
        target = ObjectTarget(dino=dino, box=square_box(mask), keys=here.keys, cls=here.cls)
        found = target.loss(vae, latents[0] * vae.config.scaling_factor)
        at_best = object_loss(here.keys, here.cls, here.keys, here.cls)[0]
        elsewhere_loss = object_loss(there.keys, there.cls, here.keys, here.cls)[0]
    assert found - at_best < 0.1 * (elsewhere_loss - at_best)


def test_the_object_term_alone_moves_the_lora_and_nothing_else(backbone, dataset):
    """Through decoder, cut and DINO, which stay as they are; one UNet pass, and the term divided by T'/T."""
    dino, calls = dataset.looks.dino, []
    before = weights(backbone.vae, dino)
    config = cat_config(inversion={"num_steps": 0}, loss={"attention_downscale": 2, "identity_max_timestep": 500})
    item = next(item for item in composed(20) if dataset.draw(config, [item]).identity_items)
    batch, kept = dataset.draw(config, [item]), {}

    def keep(module, inputs, output):
        calls.append(1)
        kept.update(noisy_latents=inputs[0], noise_pred=output.sample.detach())

    with open_run(backbone, dataset, config) as run, backbone.unet.register_forward_hook(keep):
        run.begin("tuning", {}, midway=False)
        assert run.weights("tuning") == Terms(1.0, 2.5, 1.0, 0.0)
        with run.objective.terms(batch, Terms(0, 0, 1, 0)) as terms:
            terms.identity.sum().backward()
        gradients = [parameter.grad for parameter in run.trainable() if parameter.grad is not None]
        assert len(gradients) == len(run.trainable())
        assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    abar = backbone.noise_scheduler.alphas_cumprod[batch.timesteps[0]]
    latents = (kept["noisy_latents"][0] - (1 - abar).sqrt() * kept["noise_pred"][0]) / abar.sqrt()
    assert len(calls) == 1
    torch.testing.assert_close(terms.identity.detach()[0], 2 * batch.objects[0].loss(backbone.vae, latents).detach())
    assert same(weights(backbone.vae, dino), before)
    assert not any(parameter.requires_grad for parameter in (*backbone.vae.parameters(), *dino.parameters()))


def test_a_run_tells_how_often_it_looked_at_the_object(backbone, dataset):
    config = cat_config(tuning={"num_steps": 2}, loss={"attention_downscale": 2, "identity_max_timestep": 1000})
    steps = [step.losses for step in train(backbone, dataset, config)]
    assert [step.num_identity for step in steps] == [0, 0, 0, 1, 1]
    for terms in steps[3:]:
        assert terms.identity > 0
        assert terms.total == pytest.approx(terms.reconstruction + 2.5 * terms.attention + terms.identity, rel=1e-5)


def test_each_kind_has_its_network(backbone):
    photos = {"subject": portraits(1), "style": portraits(1)}
    with pytest.raises(MagiCaptureError, match="kind is person, and object features"):
        encode(backbone, photos, small_config(), small_dino())
    with pytest.raises(MagiCaptureError, match="kind is object, and a face recogniser"):
        encode(backbone, photos, cat_config(), SmallRecogniser())


def test_other_features_or_another_kind_train_anew(backbone):
    photos, other = {"subject": portraits(1), "style": portraits(1)}, small_dino()
    other.cls_token.data += 1
    cases = [(cat_config(), None), (cat_config(), small_dino()), (cat_config(), other), (small_config(), None)]
    keys = [result_key(backbone, photos, *case) for case in cases]
    assert len(set(keys)) == 4
    assert result_key(backbone, photos, cat_config(), small_dino()) == keys[1]
