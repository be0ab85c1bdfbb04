"""GroupPerson and GroupPortraitSampler: the core's own predictions, the plain chain, and what others patch."""

from dataclasses import replace

import torch
from check_attention import UNetLog, encode, noise
from check_identity import farthest, load_fp32, predictions
from check_restore import part, refused
from check_sampling import HOW, SEED, attached, control_net, stock
from crafted import random_artifact, random_identity

BASE, NEGATIVE = "in front of a blue wall", "blurry"
TIMESTEPS = [50, 350, 650, 950]
SETTINGS = {"steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "width": 96, "height": 64}


def halves(height=64, width=96):
    left = torch.zeros(1, height, width)
    left[..., : width // 2] = 1
    return left, 1 - left


def person(pack, made, mask, **changes):
    return part(pack, "magicapture_core.group.people").Person(made=made, mask=mask, **changes)


def grouped(pack, loaded, people):
    """MODEL, positive and negative."""
    return part(pack, "nodes.grouping").apply_group(people, *loaded[:2], BASE, NEGATIVE)


def plain(model, clip, text=BASE):
    return model, encode(clip, text), encode(clip, NEGATIVE)


def sampled(shot, start, cfg=4.0):
    model, positive, negative = shot
    return predictions(model, positive, TIMESTEPS, negative, cfg, start)


def sigmas(loaded):
    return loaded[0].get_model_object("model_sampling").sigmas[TIMESTEPS]


def wide_noise():
    return torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))


def check_a_lora_and_an_identity_equal_the_core(pack, checkpoint):
    """Side by side on a picture that is no square, in fp32; texts of one and of two chunks."""
    loaded = load_fp32(checkpoint)
    left, right = halves()
    people = [
        person(pack, random_artifact(pack), left, prompt="{person} with a hat"),
        person(pack, random_identity(pack), right, strength=0.7),
    ]
    start, found = wide_noise(), []
    with torch.inference_mode(False), torch.no_grad():
        backbone = part(pack, "nodes.weights").plain_backbone(*loaded)
        predict = part(pack, "magicapture_core.group.sampler").group_predictor(backbone, people, BASE, NEGATIVE)
        for timestep, sigma in zip(TIMESTEPS, sigmas(loaded).clone(), strict=True):
            x = start.clone() * sigma
            scaled = (x / (sigma**2 + 1).sqrt()).repeat(2, 1, 1, 1)
            negative, positive = predict(0, scaled, torch.tensor(timestep)).chunk(2)
            found.append(x - sigma * (negative + 4 * (positive - negative)))
    ours = sampled(grouped(pack, loaded, people), start)
    assert farthest(ours, found, sigmas(loaded)) < 1e-3
    assert farthest(ours, sampled(plain(*loaded[:2]), start), sigmas(loaded)) > 0.01


def check_one_person_everywhere_is_the_plain_chain(pack, checkpoint):
    loaded = load_fp32(checkpoint)
    start = noise()
    artifact = random_artifact(pack)
    alone = person(pack, artifact, torch.ones(1, 64, 64), prompt="a portrait of {person} " + "very " * 80)
    ours = sampled(grouped(pack, loaded, [alone]), start)
    model, clip = attached(pack, loaded, artifact)[:2]
    theirs = sampled(plain(model, clip, alone.text(BASE)), start)
    assert farthest(ours, theirs, sigmas(loaded)) < 1e-3


def check_what_others_do_to_the_layers_goes_on_outside_of_the_regions(pack, loaded):
    """A replacement of every cross-attention, as IP-Adapters make it."""
    replaced = loaded[0].clone()
    for block in (*(("input", number) for number in (1, 2, 4, 5, 7, 8)), ("middle", 0)):
        replaced.set_model_attn2_replace(lambda query, _keys, _values, _extra: torch.zeros_like(query), *block)
    nobody = person(pack, random_identity(pack), torch.ones(1, 64, 64), strength=0.0)
    everybody = replace(nobody, strength=1.0)
    start = noise()
    patched = [replaced, *loaded[1:]]
    untouched = sampled(plain(replaced, loaded[1]), start)
    assert all(map(torch.equal, sampled(grouped(pack, patched, [nobody]), start), untouched))
    ours = sampled(grouped(pack, patched, [everybody]), start)
    without = sampled(grouped(pack, loaded, [everybody]), start)
    assert all(map(torch.equal, ours, without))


def check_each_prompt_keeps_its_peoples_texts_wherever_it_is_asked_for(pack, loaded):
    """Self-Attention Guidance asks for the negative prompt alone, guidance of 1 for the positive one; another's empty
    prompt, as Perp-Neg has it, is what the regions show too."""
    import comfy.samplers

    model, positive, negative = grouped(pack, loaded, [person(pack, random_identity(pack), torch.ones(1, 64, 64))])
    seen = []

    def look(args):
        def alone(prompt):
            return comfy.samplers.calc_cond_batch(args["model"], [prompt], args["input"], args["sigma"], options)[0]

        options = args["model_options"]
        foreign = [{key: part for key, part in cond.items() if key != "magicapture_group"} for cond in args["uncond"]]
        seen.append((args["cond_denoised"], alone(args["cond"])))
        seen.append((args["uncond_denoised"], alone(args["uncond"])))
        seen.append((args["uncond_denoised"], alone(foreign)))  # an identity has no part in the negative prompt
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(look)
    sampled((watched, positive, negative), noise())
    assert len(seen) == 3 * len(TIMESTEPS)
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-3)
    for together, alone in seen:
        torch.testing.assert_close(alone, together, atol=2e-2, rtol=1e-2)  # a batch and a single pass round otherwise
    first = sampled((model, positive, negative), noise(), cfg=1.0)
    torch.testing.assert_close(first[0], seen[0][0], atol=2e-2, rtol=1e-2)


def check_a_control_net_places_the_people(pack, loaded):
    """On somebody without any strength it is that of the stock nodes."""
    nodes = part(pack, "nodes.group")
    group = nodes.GroupPerson.execute(torch.ones(1, 64, 64), "", 0.0, identity=random_identity(pack)).result[0]
    control = {"control_net": control_net(loaded[0]), "control_image": torch.rand(1, 64, 64, 3)}
    model, clip, vae = loaded
    options = {"group": group, "prompt": BASE, "negative": "", "seed": SEED, "count": 1, "width": 64, "height": 64}
    execute = nodes.GroupPortraitSampler.execute
    latents = execute(model=model, clip=clip, vae=vae, **options, **HOW, **control, control_strength=2.0).result[1]
    assert torch.equal(latents["samples"], stock(loaded[:2], BASE, (*control.values(), 2.0)))
    assert not torch.equal(latents["samples"], stock(loaded[:2], BASE))


def check_a_step_is_one_call_however_many_there_are(pack, loaded):
    left, right = halves(64, 64)
    masks = [left, right, left * right + 1]
    logs = []
    for count in (1, 2, 3):
        made = [random_artifact(pack, 1), random_identity(pack), random_artifact(pack, 2)]
        people = [person(pack, *pair) for pair in zip(made[:count], masks, strict=False)]
        with UNetLog(loaded[0]) as log:
            sampled(grouped(pack, loaded, people), noise())
        logs.append(log.kinds)
    assert logs[0] == logs[1] == logs[2]


def check_the_first_steps_are_the_layouts_alone(pack, loaded):
    """Bit for bit those of the plain chain; all of them at a delay of 1; and those after them are the people's."""
    import comfy.sample

    group = [person(pack, random_artifact(pack), mask) for mask in halves()]
    layout, found = "a photo of two people", {}
    shots = {
        delay: part(pack, "nodes.grouping").apply_group(group, *loaded[:2], BASE, NEGATIVE, layout, delay)
        for delay in (0.0, 0.5, 1.0)
    }
    for name, (model, positive, negative) in {**shots, "plain": plain(loaded[0], loaded[1], layout)}.items():
        found[name] = seen = []
        start = wide_noise()
        comfy.sample.sample(
            model, start, 4, 4.0, "dpmpp_2m", "karras", positive, negative, torch.zeros_like(start), seed=0,
            disable_pbar=True, callback=lambda _step, x0, _x, _total, seen=seen: seen.append(x0.clone()),
        )  # fmt: skip
    assert all(map(torch.equal, found[1.0], found["plain"]))
    assert all(map(torch.equal, found[0.5][:2], found["plain"][:2]))
    assert not torch.allclose(found[0.5][2], found["plain"][2], atol=1e-3)
    assert not torch.allclose(found[0.0][0], found["plain"][0], atol=1e-3)


def check_the_nodes_make_a_picture_and_leave_the_model_alone(pack, loaded):
    nodes = part(pack, "nodes.group")
    left, right = halves(32, 48)  # of another size than the picture
    made = nodes.GroupPerson.execute(left, "a photo of {person}", 1.0, artifact=random_artifact(pack)).result
    made = nodes.GroupPerson.execute(right, "", 0.8, identity=random_identity(pack), group=made[0]).result
    model, clip, vae = loaded
    before = model.model.state_dict()["diffusion_model.out.2.weight"].clone()
    options = {"group": made[0], "prompt": BASE, "negative": "", "seed": 2**64 - 1, "count": 2, **SETTINGS}
    images, latents, report = nodes.GroupPortraitSampler.execute(model=model, clip=clip, vae=vae, **options).result
    assert images.shape == (2, 64, 96, 3)
    assert latents["samples"].shape == (2, 4, 8, 12)
    assert not torch.equal(images[0], images[1])
    assert report.splitlines() == [
        f"person 1, random, 50% of the picture: a photo of <subject> person, {BASE}",
        f"person 2, me, 50% of the picture: a photo of <person>, {BASE}",
    ]
    assert torch.equal(model.model.state_dict()["diffusion_model.out.2.weight"], before)
    assert not any(module._forward_hooks for module in model.model.diffusion_model.modules())


def check_layers_that_the_model_lacks_act_as_with_stock_loaders(pack, loaded):
    """A LoRA of a whole SD1.5 on one that was pruned: not at all."""
    artifact = random_artifact(pack)
    known = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    lacking = known.replace("attentions_0", "attentions_1")
    more = {key.replace(known, lacking): value for key, value in artifact.lora.items() if key.startswith(known)}
    assert more
    mask, start = torch.ones(1, 64, 64), noise()
    ours, theirs = (
        sampled(grouped(pack, loaded, [person(pack, made, mask)]), start)
        for made in (replace(artifact, lora={**artifact.lora, **more}), artifact)
    )
    assert all(map(torch.equal, ours, theirs))


def check_what_cannot_be_is_told(pack, loaded):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    nodes = part(pack, "nodes.group")
    artifact, mask = random_artifact(pack), torch.ones(1, 64, 96)
    with refused("artifact, identity: neither is connected"):
        nodes.GroupPerson.execute(mask, "", 1.0)
    with refused("artifact, identity: both are connected"):
        nodes.GroupPerson.execute(mask, "", 1.0, artifact=artifact, identity=random_identity(pack))
    on = attached(pack, loaded, artifact)
    for model, clip, told in (
        (on[0], on[1], "model, clip: MODEL and CLIP"),
        (on[0], loaded[1], "model, clip: MODEL"),
        (loaded[0], on[1], "model, clip: CLIP"),
    ):
        with refused(f"{told} had the LoRA of random before"):
            grouped(pack, [model, clip, loaded[2]], [person(pack, artifact, mask)])
    compiled = loaded[0].clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    with refused("model: it is compiled"):
        grouped(pack, [compiled, *loaded[1:]], [person(pack, artifact, mask)])
    wide = {key: torch.cat([value] * 2, 1) if "lora_down" in key else value for key, value in artifact.lora.items()}
    with refused("artifact: random is for another model"):
        grouped(pack, loaded, [person(pack, replace(artifact, lora=wide), mask)])
    with refused("mask: it is a batch of 2"):
        nodes.GroupPerson.execute(mask.repeat(2, 1, 1), "", 1.0, artifact=artifact)
    empty = nodes.GroupPerson.execute(mask * 0, "", 1.0, artifact=artifact).result[0]
    options = {"group": empty, "prompt": BASE, "negative": "", "seed": 1, "count": 1, **SETTINGS}
    with refused("mask: the region of person 1 is empty"):
        nodes.GroupPortraitSampler.execute(model=loaded[0], clip=loaded[1], vae=loaded[2], **options)
