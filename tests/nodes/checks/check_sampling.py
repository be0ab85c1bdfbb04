"""ComposedPromptSampler and StrengthSweep: the stock chain's very latents, each strength where it belongs, likeness."""

from dataclasses import replace
from importlib import import_module
from itertools import combinations

import torch
from check_recognition import nodes as recognition
from check_recognition import save_network
from check_restore import part, refused, samples
from crafted import random_artifact
from extent import newest_alone

PROMPT = "A photo of a {subject} person in the {style} style"
STEPS, CFG, SEED = 2, 3.0, 5
HOW = {"steps": STEPS, "cfg": CFG, "sampler_name": "euler", "scheduler": "normal"}


def inputs(pack, loaded, **changes):
    model, clip, vae = loaded
    given = {"model": model, "clip": clip, "vae": vae, "lora_name": "newest", "prompt": PROMPT, "negative": ""}
    given |= {"strength_model": 1.0, "strength_clip": 1.0, "seed": SEED, "width": 64, "height": 64}
    return given | HOW | {"artifact": random_artifact(pack)} | changes


def lists(**values):
    """As ComfyUI hands them over to a node that takes lists."""
    return {name: [value] for name, value in values.items()}


def compose(pack, loaded, count=1, **changes):
    """-> pictures, latents, the report's lines."""
    images, latents, report = (
        part(pack, "nodes.sample")
        .ComposedPromptSampler.execute(**lists(count=count, **inputs(pack, loaded, **changes)))
        .args
    )
    assert images.shape[:3] == (count, *[side * 8 for side in latents["samples"].shape[-2:]])
    return images, latents["samples"], report.split("\n")


def sweep(pack, loaded, rows, row_values, columns="nothing", column_values="", **changes):
    """-> the sheet, pictures, the report's lines."""
    node = part(pack, "nodes.sweep").StrengthSweep.PREPARE_CLASS_CLONE(None)
    axes = {"rows": rows, "row_values": row_values, "columns": columns, "column_values": column_values}
    sheet, images, report = node.execute(**lists(**axes, **inputs(pack, loaded, **changes))).args
    return sheet, images, report.split("\n")


def split_artifact(pack, seed=0, text=False):
    return replace(random_artifact(pack, seed, text), name="halves", rank_split={"subject": 3, "style": 1})


def attached(pack, loaded, artifact=None):
    return part(pack, "nodes.patching").attach(artifact or random_artifact(pack), *loaded[:2], 1.0, 1.0)[:2]


def stock(on, text, control=None, size=(64, 64)):
    """CLIPTextEncode, ControlNetApplyAdvanced, EmptyLatentImage and KSampler of ComfyUI -> latents."""
    nodes = import_module("nodes")
    model, clip = on
    conditioning = [nodes.CLIPTextEncode().encode(clip, prompt)[0] for prompt in (text, "")]
    if control:
        conditioning = nodes.ControlNetApplyAdvanced().apply_controlnet(*conditioning, *control, 0.0, 1.0)
    latent = nodes.EmptyLatentImage().generate(*size)[0]
    return nodes.KSampler().sample(model, SEED, STEPS, CFG, "euler", "normal", *conditioning, latent)[0]["samples"]


def spoken(text, subject="<subject>", style="<style>"):
    return text.replace("{subject}", subject).replace("{style}", style)


# -- strengths ---------------------------------------------------------------------------------------------------------


def check_joint_adapters_weigh_the_words(pack, loaded):
    """The latents of the stock nodes with (<subject>:0.8) in the prompt; a weight of the user's is multiplied."""
    on = attached(pack, loaded)
    plain = stock(on, spoken(PROMPT))
    _, latents, report = compose(pack, loaded, strength_subject=0.8)
    assert torch.equal(latents, stock(on, spoken(PROMPT, "(<subject>:0.8)")))
    assert not torch.equal(latents, plain)
    assert any("strength_subject weighs the words, (<subject>:0.8)" in line for line in report)
    both = compose(pack, loaded, prompt=PROMPT.replace("{style}", "({style}:0.5)"), strength_style=0.5)[1]
    assert torch.equal(both, stock(on, spoken(PROMPT, style="(<style>:0.25)")))
    assert torch.equal(compose(pack, loaded)[1], plain)


def check_split_adapters_scale_their_halves(pack, loaded):
    """On a plain MODEL: the latents of the stock chain behind a LoRA that was scaled by hand."""
    artifact = split_artifact(pack)
    factors = torch.tensor([1, 1, 1, 0.5]).half()
    lora = {key: value * factors if key.endswith("up.weight") else value for key, value in artifact.lora.items()}
    expected = stock(attached(pack, loaded, replace(artifact, lora=lora)), spoken(PROMPT))
    _, latents, report = compose(pack, loaded, artifact=artifact, strength_style=0.5)
    assert torch.equal(latents, expected)
    assert not torch.equal(latents, compose(pack, loaded, artifact=artifact)[1])
    assert "strength_style 0.5 scales the LoRA's half of the style" in report


def check_what_is_on_model_is_left_as_it_is(pack, loaded):
    """Behind a loader that scaled a half: by the file as it is and by the loader's artifact, never applied twice."""
    halves = part(pack, "magicapture_core.halves")
    whole = split_artifact(pack, text=True)
    scaled = halves.scaled(whole, {"subject": 1.0, "style": 0.25})
    on = attached(pack, loaded, scaled)
    expected = stock(on, spoken(PROMPT))
    for artifact in (whole, scaled):
        _, latents, report = compose(pack, (*on, loaded[2]), artifact=artifact, strength_model=0.5, strength_style=0.5)
        assert torch.equal(latents, expected)
        assert "halves was on MODEL and CLIP already and is not applied twice" in report
        for line in ("strength_model 0.5", "strength_style 0.5"):
            assert any(said.startswith(f"{line} has no effect with halves: it was on MODEL already") for said in report)


def check_a_half_is_not_applied_twice(pack, loaded):
    """MODEL has the person of one file with the style of another; the whole file on top would double the person."""
    halves = part(pack, "magicapture_core.halves")
    first, second = split_artifact(pack), split_artifact(pack, seed=1)
    mixed = halves.mix(first, second, "mixed")
    on = (*attached(pack, loaded, mixed), loaded[2])
    for artifact in (first, second, halves.extract(first, "subject", "person")):
        with refused("artifact, lora_name: MODEL or CLIP has the person or the style of this file already"):
            compose(pack, on, artifact=artifact, prompt="")
    assert "mixed was on MODEL already and is not applied twice" in compose(pack, on, artifact=mixed)[2]


def check_a_strength_that_cannot_act_is_told(pack, loaded):
    """No word of it in the prompt, no half of it in the file, no text part: a line for the sampler, none at 1."""
    halves = part(pack, "magicapture_core.halves")
    joint = random_artifact(pack, text=False)
    report = compose(pack, loaded, artifact=joint, prompt="{subject}", strength_style=0.5, strength_clip=0.5)[2]
    assert "strength_style 0.5 has no effect with random: the prompt holds no learned word of a style" in report
    assert "strength_clip 0.5 has no effect with random: it has no part for CLIP" in report
    person = halves.extract(split_artifact(pack), "subject", "person")
    report = compose(pack, loaded, artifact=person, prompt="{subject}", strength_style=0.5)[2]
    assert "strength_style 0.5 has no effect with person: it holds no style" in report
    assert not [line for line in compose(pack, loaded, artifact=joint)[2] if "strength" in line]


# -- likeness ----------------------------------------------------------------------------------------------------------


@newest_alone
def check_the_most_alike_comes_first(pack, loaded):
    """Two faces and noise through a VAE that hands out known pictures; latents, seeds and scores go along."""
    recogniser = recognition(pack).LoadFaceRecognition.execute(save_network(pack, "iresnet18.pth"))[0]
    faces = samples(pack)
    drawn = torch.stack([torch.zeros_like(faces[0]), faces[1], faces[0]])

    class Projector:
        def decode(self, latents):
            return drawn[: len(latents)]

    node = part(pack, "nodes.sample").ComposedPromptSampler
    likeness = {"face_recognition": recogniser, "reference": faces[:1]}
    given = inputs(pack, (*loaded[:2], Projector()))
    images, latents, report = node.execute(**lists(count=3, **given, **likeness)).args
    unranked = node.execute(**lists(count=3, **given)).args[1]["samples"]
    assert torch.equal(images, drawn[[2, 1, 0]])
    assert torch.equal(latents["samples"], unranked[[2, 1, 0]])
    lines = report.split("\n")[-3:]
    assert lines[0] == "picture 1: seed 7, likeness 1.000"
    assert lines[1].startswith("picture 2: seed 6, likeness 0.")
    assert lines[2] == "picture 3: seed 5, no face"
    shown, same, again = node.execute(**lists(count=3, **given, **likeness, show_scores=True)).args
    assert torch.equal(same["samples"], latents["samples"])
    assert again == report
    assert shown.shape == images.shape
    one_by_one = lists(count=3, **given, **likeness) | {"reference": [faces[:1], faces[1:]]}
    assert node.execute(**one_by_one).args[2].count("likeness 0.") == 2  # no picture is both of them
    with refused("prompt: it is a list of 2; connect a single one"):
        node.execute(**one_by_one | {"prompt": ["a", "b"]})
    assert node.fingerprint_inputs(lora_name=["no such file"], prompt=[""]) == []
    changed = (shown - images).abs().amax((0, 3)) > 0.01
    height = images.shape[1]
    assert changed[-height // 6 :].any()
    assert not changed[: -height // 6].any()


def check_one_of_both_sockets_is_refused(pack, loaded):
    recogniser = recognition(pack).LoadFaceRecognition.execute(save_network(pack, "iresnet18.pth"))[0]
    with refused("reference: likeness needs face_recognition and reference; connect both, or neither"):
        compose(pack, loaded, face_recognition=recogniser)
    with refused("face_recognition: likeness needs"):
        compose(pack, loaded, reference=samples(pack)[:1])
    with refused("reference: no face is found in it"):
        compose(pack, loaded, face_recognition=recogniser, reference=torch.zeros(1, 64, 64, 3))
    with refused("control_image: control_net and control_image go together"):
        compose(pack, loaded, control_net=control_net(loaded[0]))
    with refused("control_net: control_net and control_image go together"):
        compose(pack, loaded, control_image=torch.zeros(1, 64, 64, 3))


# -- what is on MODEL and around it ------------------------------------------------------------------------------------


def check_attention_patches_keep_acting(pack, loaded):
    """As IP-Adapter packs put them: a patch of the inputs and a replacement of one layer, to the bit as in KSampler."""
    from comfy.ldm.modules.attention import optimized_attention

    model = loaded[0].clone()
    model.set_model_attn2_patch(lambda q, k, v, extra: (q, k * 0.5, v + 0.1))
    patched = model.clone()
    patched.set_model_attn2_replace(
        lambda q, k, v, extra: optimized_attention(q, k, v * 1.5, extra["n_heads"]), "middle", 0
    )
    seen = [compose(pack, loaded)[1]]
    for patcher in (model, patched):
        seen.append(compose(pack, (patcher, *loaded[1:]))[1])
        assert torch.equal(seen[-1], stock(attached(pack, (patcher, *loaded[1:])), spoken(PROMPT)))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def control_net(model, width=768):
    """ComfyUI's own ControlNet with random weights, for a UNet of the small checkpoint's shape."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management
    import comfy.ops

    shape = dict(model.model.model_config.unet_config) | {"context_dim": width, "dtype": torch.float32}
    network = comfy.cldm.cldm.ControlNet(
        **{key: value for key, value in shape.items() if key not in ("out_channels", "transformer_depth_output")},
        hint_channels=3,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.03, generator=generator)
    return comfy.controlnet.ControlNet(network, load_device=comfy.model_management.get_torch_device())


def check_control_net_equals_the_stock_chain(pack, loaded):
    """To the bit, at two strengths; the user's own object is left as it was; one for SDXL is refused."""
    picture = torch.rand(1, 80, 96, 3, generator=torch.Generator().manual_seed(0))
    net = control_net(loaded[0])
    on, plain = attached(pack, loaded), compose(pack, loaded)[1]
    for strength in (1.0, 0.3):
        latents = compose(pack, loaded, control_net=net, control_image=picture, control_strength=strength)[1]
        assert latents.isfinite().all()
        assert torch.equal(latents, stock(on, spoken(PROMPT), (net, picture, strength)))
        assert not torch.equal(latents, plain)
    assert torch.equal(compose(pack, loaded, control_net=net, control_image=picture, control_strength=0.0)[1], plain)
    assert net.cond_hint_original is None
    with refused("control_net: it is not for SD1.5 (its prompts are 2048 wide"):
        compose(pack, loaded, control_net=control_net(loaded[0], 2048), control_image=picture)


def check_v_prediction_equals_the_stock_chain(pack, loaded):
    """Of a fine-tune that predicts velocities, as ComfyUI's ModelSamplingDiscrete says: what MODEL says is sampled."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    found = ModelSamplingDiscrete().patch(loaded[0], "v_prediction", True)
    velocity = found[0]
    latents = compose(pack, (velocity, *loaded[1:]))[1]
    assert torch.equal(latents, stock(attached(pack, (velocity, *loaded[1:])), spoken(PROMPT)))
    assert not torch.equal(latents, compose(pack, loaded)[1])


def check_previews_while_sampling(pack, loaded):
    """One bar over all pictures, with a picture at each step, where the user has switched previews on."""
    import comfy.utils
    from comfy.cli_args import LatentPreviewMethod, args

    seen, method = [], args.preview_method
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: seen.append((value, total, preview)))
    args.preview_method = LatentPreviewMethod.Latent2RGB
    try:
        compose(pack, loaded, count=2)
    finally:
        args.preview_method = method
        comfy.utils.set_progress_bar_global_hook(None)
    drawn = [(value, total) for value, total, preview in seen if preview]
    assert drawn == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1][2][1].size >= (8, 8)


# -- bad input ---------------------------------------------------------------------------------------------------------


def check_odd_prompts_and_sizes(pack, loaded):
    """Empty, longer than the encoder, with a slot that the LoRA lacks; 513 x 771 becomes what can be made of it."""
    on = attached(pack, loaded)
    assert torch.equal(compose(pack, loaded, prompt="")[1], stock(on, ""))
    long = f"{PROMPT}, {'smiling, ' * 60}"
    assert torch.equal(compose(pack, loaded, prompt=long)[1], stock(on, spoken(long)))
    with refused("prompt: random has no learned word for {subject_2} and {style_3}"):
        compose(pack, loaded, prompt="{subject_2} and {style_3}")
    images, latents, report = compose(pack, loaded, width=129, height=199)
    assert images.shape[1:3] == (192, 128)
    assert torch.equal(latents, stock(on, spoken(PROMPT), size=(128, 192)))
    assert "width, height: 128 x 192, the next smaller multiples of 8" in report


def check_seeds_are_those_of_the_stock_sampler(pack, loaded):
    """As far as there are any: after the last comes the first again."""
    largest = import_module("nodes").KSampler.INPUT_TYPES()["required"]["seed"][1]["max"]
    samplers = part(pack, "nodes.sample").NODES + part(pack, "nodes.sweep").NODES + part(pack, "nodes.group").NODES[1:]
    for sampler in samplers:
        [seed] = [socket for socket in sampler.define_schema().inputs if socket.id == "seed"]
        assert seed.max == largest, sampler
    _, latents, report = compose(pack, loaded, count=2, seed=largest)
    assert report[-2:] == [f"picture 1: seed {largest}", "picture 2: seed 0"]
    assert torch.equal(latents[1:], compose(pack, loaded, seed=0)[1])


def check_a_model_that_gives_nan_is_one_line(pack, loaded):
    """Where others make a black picture."""
    model, *others = loaded
    broken = model.clone()
    broken.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"]) * torch.nan
    )
    with refused(f"seed {SEED}: the picture holds NaN"):
        compose(pack, (broken, *others))


def check_sdxl_is_refused(pack, loaded):
    """Its MODEL, whose layers share some names with SD1.5's, and its CLIP."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sdxl_clip
    import comfy.supported_models

    small = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_head_channels": 32}
    small |= {"num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 1], "context_dim": 2048}
    small |= {"transformer_depth_output": [0, 0, 1, 1], "transformer_depth_middle": 1, "use_spatial_transformer": True}
    small |= {"num_classes": "sequential", "adm_in_channels": 2816, "use_linear_in_transformer": True}
    network = comfy.model_base.SDXL(comfy.supported_models.SDXL(small | {"dtype": torch.float32}))
    model = comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
    clip = loaded[1].clone()
    clip.tokenizer = comfy.sdxl_clip.SDXLTokenizer()
    with refused("model: it is not SD1.5 (its prompts are 2048 wide, not 768)"):
        compose(pack, (model, *loaded[1:]))
    with refused("clip: it is not that of SD1.5"):
        compose(pack, (loaded[0], clip, loaded[2]))


# -- the sweep ---------------------------------------------------------------------------------------------------------


def check_a_sweep_is_the_sampler_at_each_strength(pack, loaded):
    """Every cell is the sampler's picture of that seed and these strengths; rows go down, columns across."""
    sheet, images, report = sweep(
        pack, loaded, "strength_style", "0.5, 1", "strength_model", "0.4 ; 1", strength_model=7.0, strength_style=7.0
    )
    wanted = [(0.5, 0.4), (0.5, 1.0), (1.0, 0.4), (1.0, 1.0)]
    for image, (style, model) in zip(images, wanted, strict=True):
        alone = compose(pack, loaded, strength_style=style, strength_model=model)[0][0]
        torch.testing.assert_close(image, alone, rtol=0, atol=1e-4)  # the VAE rounds a batch otherwise than one
    assert min((a - b).abs().max() for a, b in combinations(images, 2)) > 1e-2
    assert report[-4:] == [f"picture {i}: style {s:g}, model {m:g}" for i, (s, m) in enumerate(wanted, 1)]
    assert f"seed {SEED}" in report
    assert any("weighs the words, (<style>:0.5)" in line for line in report)
    sheets = part(pack, "magicapture_core.sheets")
    texts = [line.split(": ", 1)[1] for line in report[-4:]]
    expected = sheets.contact_sheet(list(images.movedim(-1, 1)), 2, texts)
    assert torch.equal(sheet[0], expected.movedim(0, -1))


@newest_alone
def check_a_sweep_of_one_strength_with_likeness(pack, loaded):
    recogniser = recognition(pack).LoadFaceRecognition.execute(save_network(pack, "iresnet18.pth"))[0]
    likeness = {"face_recognition": recogniser, "reference": samples(pack)[:1]}
    sheet, images, report = sweep(pack, loaded, "nothing", "ignored", "strength_clip", "0 1 -1", **likeness)
    assert len(images) == 3
    assert sheet.shape[2] > 3 * sheet.shape[1] * 0.7  # one row
    assert [line.split(": ")[1].split(",")[0] for line in report[-3:]] == ["clip 0", "clip 1", "clip -1"]
    assert all(line.endswith("no face") or "likeness" in line for line in report[-3:])


def check_a_sweep_of_large_pictures_has_a_small_sheet(pack):
    draw = part(pack, "nodes.sweep").draw_sheet
    sheet = draw(torch.zeros(2, 1024, 2048, 3), 2, ["a", "b"])
    assert sheet.shape[0] == 1
    assert 256 < sheet.shape[2] < 330
    assert 1024 < sheet.shape[3] < 1100


def check_bad_sweeps_are_one_line(pack, loaded):
    """Before anything is sampled, with the widget's name."""
    style, model = "strength_style", "strength_model"
    bad = [
        ("row_values: 'a' is no number from -10 to 10", style, "1, a", "nothing", ""),
        ("column_values: '11' is no number", style, "1", model, "11"),
        ("row_values: 'nan' is no number", style, "nan", "nothing", ""),
        ("row_values: it is empty; write strengths such as", style, " , ", "nothing", ""),
        ("rows, columns: both are strength_style", style, "1", style, "1"),
        ("rows, columns: both are nothing", "nothing", "", "nothing", ""),
        ("row_values, column_values: 9 times 8 are 72 pictures, more than 64", style, "1 " * 9, model, "1 " * 8),
    ]
    for message, *axes in bad:
        with refused(message):
            sweep(pack, loaded, *axes)
    on = (*attached(pack, loaded), loaded[2])
    with refused("columns: strength_model has no effect with random: it was on MODEL already"):
        sweep(pack, on, style, "1", model, "0.5 1")
    with refused("rows: strength_style has no effect with random: the prompt holds no learned word"):
        sweep(pack, loaded, style, "0.5 1", prompt="{subject}")
