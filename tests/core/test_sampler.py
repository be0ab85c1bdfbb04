import dataclasses

import pytest
import torch

from magicapture_core import sampler
from magicapture_core.backbone import tiny
from magicapture_core.heatmaps import AttentionRecord
from magicapture_core.sefi.identity import SefiIdentity
from magicapture_core.types import MagiCaptureError
from tests.small import random_artifact, same, weights

PROMPT = "A photo of a {subject} person in the {style} style"


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def artifact(backbone):
    return random_artifact(backbone)


def test_pictures_are_finite_and_each_has_its_own_seed(backbone, artifact):
    both = sampler.generate(backbone, artifact, PROMPT, num_images=2, num_steps=3, seed=5)
    assert both.shape == (2, 3, 64, 64)
    assert both.isfinite().all()
    second = sampler.generate(backbone, artifact, PROMPT, num_images=1, num_steps=3, seed=6)
    torch.testing.assert_close(second[0], both[1], atol=1e-4, rtol=0)
    assert not torch.allclose(both[0], both[1], atol=0.05)


def test_generating_leaves_the_backbone_as_it_was(backbone, artifact):
    modules = (backbone.unet, backbone.text_encoder, backbone.vae)
    before = weights(*modules)
    sampler.generate(backbone, artifact, PROMPT, num_steps=1)
    assert same(weights(*modules), before)


def test_strength_and_words_change_the_picture(backbone, artifact):
    def picture(prompt, strength):
        return sampler.generate(backbone, artifact, prompt, strength, num_steps=3)

    assert not torch.allclose(picture(PROMPT, 1.0), picture(PROMPT, 0.0), atol=0.02)
    assert not torch.allclose(picture(PROMPT, 0.0), picture("A photo of a person in the style", 0.0), atol=0.02)


def test_the_picture_may_have_any_size_of_the_grid(backbone, artifact):
    assert sampler.generate(backbone, artifact, PROMPT, num_steps=1, size=(64, 96)).shape == (1, 3, 64, 96)


def test_watching_attention_changes_nothing_and_costs_no_pass(backbone, artifact):
    calls = []
    record = AttentionRecord(["<subject>", "person"])
    plain = sampler.generate(backbone, artifact, PROMPT, num_images=2, num_steps=3)
    with backbone.unet.register_forward_hook(lambda *_: calls.append(1)):
        watched = sampler.generate(backbone, artifact, PROMPT, num_images=2, num_steps=3, record=record)
    assert torch.equal(plain, watched)
    assert len(calls) == 3
    assert record.num_pictures == 2
    assert record.heatmap("person", (64, 64)).shape == (2, 64, 64)


def test_a_word_that_the_prompt_lacks_is_named(backbone, artifact):
    with pytest.raises(MagiCaptureError, match="umbrella"):
        sampler.generate(backbone, artifact, PROMPT, num_steps=1, record=AttentionRecord(["umbrella"]))


def test_an_artifact_of_another_kind_of_model_is_refused_by_name(backbone, artifact):
    other = dataclasses.replace(artifact, architecture="stable-diffusion-v1")
    with pytest.raises(MagiCaptureError, match=r"random .*stable-diffusion-v1.*magicapture-tiny"):
        sampler.generate(backbone, other, PROMPT, num_steps=1)


def test_diffusers_loads_our_keys_and_its_unet_gives_the_same(backbone, artifact):
    """Oracle: the file as diffusers' own LoRA loader understands it, alphas included."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    prompt_embeds = torch.randn(2, 77, backbone.prompt_dim, generator=generator)
    inputs = (latents, torch.tensor([10, 900]), prompt_embeds)
    with torch.no_grad(), sampler.applied(backbone, artifact):
        ours = backbone.unet(*inputs).sample
    other = tiny().unet
    loaded = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(artifact.lora))
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(loaded[0], network_alphas=loaded[1], unet=other)
    with torch.no_grad():
        theirs, untouched = other(*inputs).sample, backbone.unet(*inputs).sample
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, untouched, atol=1e-2)


def identity_of(backbone, stages, placeholder="<person>"):
    return SefiIdentity(
        name="ada",
        architecture=backbone.architecture,
        placeholder=placeholder,
        initializer="person",
        stages=stages,
        template="a photo of the face of {person}",
    )


def stages_of(backbone, count=5, seed=0):
    return torch.randn(count, 2, backbone.prompt_dim, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_an_identity_that_is_the_same_everywhere_is_an_ordinary_word_to_the_bit(backbone, artifact):
    row = stages_of(backbone)[:1, :1]
    identity = identity_of(backbone, row.expand(5, 2, -1))
    word = dataclasses.replace(artifact.tokens[0], placeholder="<person>", vectors=row[0])
    ordinary = dataclasses.replace(artifact, tokens=(word,), lora={})
    prompt = "a photo of <person> wearing glasses"
    pictures = [
        sampler.generate(backbone, None, prompt, identities=[identity], num_steps=5),
        sampler.generate(backbone, ordinary, prompt, num_steps=5),
    ]
    assert torch.equal(*pictures)


def test_a_stage_acts_in_its_own_interval_alone(backbone):
    stages = stages_of(backbone)
    changed = stages.clone()
    changed[3] += 0.1
    seen = []
    for value in (stages, changed):
        contexts = {}

        def keep(_unet, args, contexts=contexts):
            contexts[int(args[1])] = args[2]

        with backbone.unet.register_forward_pre_hook(keep):
            sampler.generate(backbone, None, "a <person>", identities=[identity_of(backbone, value)], num_steps=20)
        seen.append(contexts)
    differ = {timestep for timestep in seen[0] if not torch.equal(seen[0][timestep], seen[1][timestep])}
    assert differ == {timestep for timestep in seen[0] if 600 <= timestep < 800}
    assert differ


def test_several_identities_and_a_lora_go_together(backbone, artifact):
    people = [
        identity_of(backbone, stages_of(backbone, 5, 1), "<a>"),
        identity_of(backbone, stages_of(backbone, 3, 2), "<b>"),
    ]
    prompt = "a photo of <a> and <b> in the {style} style"
    record = AttentionRecord(["<a>", "<b>", "<style>"])
    both = sampler.generate(backbone, artifact, prompt, identities=people, num_steps=3, record=record)
    swapped = [dataclasses.replace(people[0], placeholder="<b>"), dataclasses.replace(people[1], placeholder="<a>")]
    other = sampler.generate(backbone, artifact, prompt, identities=swapped, num_steps=3)
    assert torch.equal(
        both,
        sampler.generate(
            backbone, artifact, "a photo of <b> and <a> in the {style} style", identities=swapped, num_steps=3
        ),
    )
    assert not torch.allclose(both, other, atol=0.01)
    assert record.heatmap("<b>", (64, 64)).any()


def test_the_text_encoder_runs_once_a_stage_and_once_for_keys_and_values_alike(backbone, artifact):
    """Without a word of stages the keys and the values see the same prompt."""

    def count(prompt, **given):
        calls = []
        with backbone.text_encoder.register_forward_hook(lambda *_: calls.append(1)):
            sampler.generate(backbone, prompt=prompt, num_steps=10, **given)
        return len(calls)

    assert count("a photo of {subject}", artifact=artifact) == 1
    identity = identity_of(backbone, stages_of(backbone))
    assert count("a photo of <person>", artifact=None, identities=[identity]) == 2 * 5
