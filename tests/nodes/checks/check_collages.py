"""ControlNets of the training's clone phase: ComfyUI's own objects, read as they are and left as they are."""

import contextlib
from importlib import import_module
from pathlib import Path

import torch
from check_training import Steps, as_bytes, inputs, same
from extent import newest_alone

HINT_WIDTHS = ((3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 320))


def module(pack, name):
    return import_module(f"{pack.__name__}.{name}")


def load_control_net(loaded, seed=0, file_name="control_v11p_sd15_openpose.pth"):
    """By ComfyUI's loader, out of a file with the names of the original ones: the UNet's inner half, moved a little."""
    import folder_paths

    from nodes import ControlNetLoader  # pyright: ignore[reportAttributeAccessIssue] # ComfyUI's, not ours

    generator = torch.Generator().manual_seed(seed)

    def convolution(name, wide_in, wide_out, kernel):
        weight = torch.randn(wide_out, wide_in, kernel, kernel, generator=generator) / (wide_in * kernel**2) ** 0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(wide_out)}

    weights = {}
    for key, value in loaded[0].model.state_dict().items():
        name = key.removeprefix("diffusion_model.")
        if key != name and name.startswith(("time_embed", "input_blocks", "middle_block")):
            weights[name] = value.float() + 0.01 * torch.randn(value.shape, generator=generator)
    for index in range(len({name.split(".")[1] for name in weights if name.startswith("input_blocks")})):
        weights |= convolution(f"zero_convs.{index}.0", 320, 320, 1)
    weights |= convolution("middle_block_out.0", 320, 320, 1)
    for index, (wide_in, wide_out) in enumerate(HINT_WIDTHS):
        weights |= convolution(f"input_hint_block.{2 * index}", wide_in, wide_out, 3)
    file = Path(folder_paths.models_dir) / "controlnet" / file_name
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"control_model.{name}": value.half().clone() for name, value in weights.items()}, file)
    folder_paths.add_model_folder_path("controlnet", str(file.parent))
    folder_paths.filename_list_cache.pop("controlnet", None)
    return ControlNetLoader().load_controlnet(file_name)[0]


def given_with(pack, loaded, name, **changes):
    """Faces where the masks have them, and three steps of collages."""
    types, config = module(pack, "magicapture_core.types"), module(pack, "magicapture_core.config")
    given = inputs(pack, loaded, name=name)
    eyes = torch.tensor([(26.0, 28.0), (38.0, 28.0), (32.0, 34.0), (27.0, 40.0), (37.0, 40.0)])
    face = types.Face(box=torch.tensor([16.0, 16.0, 48.0, 48.0]), landmarks=eyes)
    clone_steps = changes.pop("clone_steps", 3)
    few = {"inversion": {"num_steps": 1}, "tuning": {"num_steps": 1}, "clone_steps": clone_steps}
    settings = config.parse_config({**given["settings"].model_dump(), **few})
    return given | {"subject_faces": [face, face], "settings": settings} | changes


def condition(control_net):
    """All that a training could have changed."""
    model, patcher = control_net.control_model, control_net.control_model_wrapped
    hooks = [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in model.modules()]
    numbers = {key: value.flatten().view(torch.uint8).clone() for key, value in model.state_dict().items()}
    kinds = {key: (value.dtype, value.device) for key, value in model.state_dict().items()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    rest = control_net.strength, control_net.cond_hint_original, control_net.previous_controlnet, dict(patcher.patches)
    return numbers, (kinds, hooks, trained, rest)


def check_its_weights_say_the_same_as_in_comfyui(pack, loaded):
    """What ComfyUI's object adds at each of its places, the net that trains adds too."""
    weights = module(pack, "nodes.weights")
    control_net = load_control_net(loaded)
    with torch.inference_mode(False), torch.no_grad():
        unet = weights.plain_backbone(*loaded).unet
        net = module(pack, "nodes.collages").plain_net("skeleton_control_net", control_net, unet)
        generator = torch.Generator().manual_seed(1)
        latents, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 768, generator=generator)
        hint, timesteps = torch.rand(1, 3, 64, 64, generator=generator), torch.tensor([500])
        down, middle = net(latents, timesteps, context, hint, return_dict=False)
    dtype = control_net.manual_cast_dtype or control_net.control_model.dtype
    said = control_net.control_model(
        x=latents.to(dtype), hint=hint.to(dtype), timesteps=timesteps.to(dtype), context=context.to(dtype)
    )
    for ours, theirs in zip((*down, middle), (*said["output"], *said["middle"]), strict=True):
        assert theirs.abs().max() > 0.1
        assert (ours - theirs).abs().max() < 0.01 * theirs.abs().max()


@newest_alone
def check_both_take_turns_and_stay_as_they_are(pack, loaded):
    """The report tells each mode; the same again is kept; other landmarks train anew."""
    import comfy.model_management

    node = module(pack, "nodes.train").TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    nets = [load_control_net(loaded, seed, f"{seed}.pth") for seed in (0, 1)]
    comfy.model_management.load_models_gpu([nets[0].control_model_wrapped])  # as after a picture
    sockets = {"skeleton_control_net": nets[0], "landmark_control_net": nets[1]}
    before, models = [condition(net) for net in nets], as_bytes(loaded)
    given = given_with(pack, loaded, "turns", **sockets)
    report = node.execute(**given).args[-1]
    lines = report.split("\n")
    for mode in ("skeleton", "landmark", "zoom"):
        assert any(line.startswith(f"clone phase, {mode}: 1 steps, reconstruction ") for line in lines), report
    assert "not used" not in report
    for net, (numbers, rest) in zip(nets, before, strict=True):
        assert same(condition(net)[0], numbers)
        assert condition(net)[1] == rest
    assert same(models, as_bytes(loaded))

    with Steps() as steps:
        report = node.execute(**given).args[-1]
    assert not steps.seen
    assert "Nothing has changed" in report
    with Steps(cancel_at=1) as steps, contextlib.suppress(comfy.model_management.InterruptProcessingException):
        node.execute(**(given | {"landmark_style": "mediapipe"}))
    assert steps.seen


@newest_alone
def check_one_is_enough(pack, loaded):
    node = module(pack, "nodes.train").TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    given = given_with(pack, loaded, "alone", landmark_control_net=load_control_net(loaded), clone_steps=2)
    report = node.execute(**given).args[-1]
    assert "clone phase, landmark: 1 steps" in report, report
    assert "clone phase, zoom: 1 steps" in report
    assert "clone phase: no ControlNet for skeleton" in report


@newest_alone
def check_without_collages_it_is_said_and_nothing_trains_anew(pack, loaded):
    node = module(pack, "nodes.train").TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    given = given_with(pack, loaded, "unused", clone_steps=0)
    node.execute(**given)
    with Steps() as steps:
        report = node.execute(**given, skeleton_control_net=load_control_net(loaded)).args[-1]
    assert not steps.seen
    assert "skeleton_control_net is not used: the settings' clone_steps is 0" in report.split("\n"), report


def check_others_are_refused_in_one_line(pack, loaded):
    """A T2I-Adapter, a Control-LoRA, and SDXL's, each by the name of its socket; and faces that nobody has found."""
    import comfy.controlnet

    node = module(pack, "nodes.train").TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    types = module(pack, "magicapture_core.types")
    wide, good = load_control_net(loaded, file_name="wide.pth"), load_control_net(loaded)
    layer = wide.control_model.input_blocks[1][1].transformer_blocks[0].attn2.to_k
    layer.weight = torch.nn.Parameter(torch.zeros(320, 2048, dtype=layer.weight.dtype), requires_grad=False)
    adapter = comfy.controlnet.T2IAdapter(None, 3, 8, "nearest-exact")
    refused = (
        ({"skeleton_control_net": adapter}, "skeleton_control_net: a T2IAdapter has no weights of its own"),
        ({"skeleton_control_net": comfy.controlnet.ControlLora({})}, "skeleton_control_net: a ControlLora has no"),
        ({"landmark_control_net": wide}, "landmark_control_net: it is not for SD1.5 (its prompts are 2048 wide"),
        ({"landmark_control_net": good, "subject_faces": None}, "subject: a ControlNet needs the face of every photo"),
    )
    for change, text in refused:
        message = ""
        try:
            node.execute(**given_with(pack, loaded, "refused", **change))
        except types.MagiCaptureError as error:
            message = str(error)
        assert message.startswith(text), message
        assert "\n" not in message
