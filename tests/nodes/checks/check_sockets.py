"""Layouts there and back, and settings as widgets there and back."""

from importlib import import_module

import torch


def module(pack, name):
    return import_module(f"{pack.__name__}.{name}")


def check_images_and_masks_round_trip(pack):
    """[B,H,W,C] and [B,3,H,W] hold the same pixel at the same place; copies are fresh and free of inference mode."""
    sockets = module(pack, "nodes.sockets")
    images, masks = torch.rand(2, 5, 7, 3), torch.rand(2, 5, 7)
    core = sockets.to_core(images)
    assert core.shape == (2, 3, 5, 7)
    assert core[1, 2, 3, 4] == images[1, 3, 4, 2]
    assert torch.equal(sockets.to_comfy(core), images)
    assert torch.equal(sockets.masks_to_comfy(sockets.masks_to_core(masks)), masks)
    assert sockets.masks_to_core(masks[0]).shape == (1, 1, 5, 7)
    core.zero_()
    assert images.any()
    with torch.inference_mode(False):
        assert not sockets.to_core(images).is_inference()
        assert not sockets.masks_to_core(masks).is_inference()


def check_odd_images(pack):
    """Grey, RGBA, half precision and values beyond 0..1 become RGB float32 in 0..1."""
    sockets = module(pack, "nodes.sockets")
    grey = sockets.to_core(torch.full((1, 2, 2, 1), 0.25, dtype=torch.float16))
    assert grey.shape == (1, 3, 2, 2)
    assert grey.dtype == torch.float32
    assert torch.all(grey == 0.25)
    assert sockets.to_core(torch.full((1, 2, 2, 4), 2.0)).max() == 1


def check_what_comes_from_a_card_goes_to_the_cpu(pack):
    """With --gpu-only every IMAGE and MASK lies there; a fake tensor has a device and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    sockets = module(pack, "nodes.sockets")
    with FakeTensorMode():
        images, masks = torch.empty(2, 5, 7, 3, device="cuda"), torch.empty(2, 5, 7, device="cuda")
        assert images.device.type == "cuda"
        assert sockets.to_core(images).device.type == "cpu"
        assert sockets.masks_to_core(masks).device.type == "cpu"


def check_settings_round_trip(pack):
    """Every knob has one widget; the widgets' defaults are the default configuration; every value arrives."""
    sockets, settings = module(pack, "nodes.sockets"), module(pack, "nodes.settings")
    config = module(pack, "magicapture_core.config")
    default = config.parse_config({})
    inputs = sockets.settings_sockets(default, settings.WIDGETS)
    assert {sockets.widget_id(path) for path, *_ in sockets.leaves(default)} == set(settings.WIDGETS)
    defaults = {socket.id: socket.default for socket in inputs}
    assert settings.chosen_config("custom", defaults) == default
    changed = settings.chosen_config("custom", defaults | {"lora_rank": 16, "tuning_tasks": "source, composed"})
    assert changed.lora.lora_rank == 16
    assert changed.tuning.tasks == ("source", "composed")


def check_bounds_hold(pack):
    """Both ends of every numeric widget are valid settings, and one step beyond is not."""
    sockets, settings = module(pack, "nodes.sockets"), module(pack, "nodes.settings")
    config, types = module(pack, "magicapture_core.config"), module(pack, "magicapture_core.types")
    inputs = sockets.settings_sockets(config.parse_config({}), settings.WIDGETS)
    defaults = {socket.id: socket.default for socket in inputs}

    def accepted(name, value):
        try:
            settings.chosen_config("custom", defaults | {name: value})
        except types.MagiCaptureError:
            return False
        return True

    numeric = [socket for socket in inputs if getattr(socket, "max", None) is not None]
    assert len(numeric) > 15
    for socket in numeric:
        assert accepted(socket.id, socket.min), socket.id
        assert accepted(socket.id, socket.max), socket.id
        assert not accepted(socket.id, socket.min - socket.step), socket.id
        assert socket.max == sockets.MAX_INT or not accepted(socket.id, socket.max + socket.step), socket.id


def check_presets_replace_three_widgets(pack):
    """A preset decides the steps and the groups; everything else stays as the widgets say."""
    sockets, settings = module(pack, "nodes.sockets"), module(pack, "nodes.settings")
    config = module(pack, "magicapture_core.config")
    inputs = sockets.settings_sockets(config.parse_config({}), settings.WIDGETS)
    mine = {s.id: s.default for s in inputs} | {"inversion_num_steps": 7, "accumulate": 9, "lora_rank": 32}
    for name in settings.OFFERED:
        preset, chosen = config.TrainConfig.preset(name), settings.chosen_config(name, mine)
        assert chosen.inversion.num_steps == preset.inversion.num_steps
        assert chosen.tuning.num_steps == preset.tuning.num_steps
        assert chosen.accumulate == preset.accumulate
        assert chosen.lora.lora_rank == 32
    assert settings.chosen_config("custom", mine).inversion.num_steps == 7


def check_names_stay_in_their_folder(pack, tmp_path):
    """Names come over HTTP: nothing outside the folder is reached, by dots, absolutely, or through a link."""
    folders, types = module(pack, "nodes.folders"), module(pack, "magicapture_core.types")
    root = tmp_path / "input"
    (root / "mine").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    assert folders.inside(root, "mine") == (root / "mine").resolve()
    for name in ("..", "../secret", "mine/../../secret", str(tmp_path / "secret"), "link"):
        try:
            path = folders.inside(root, name)
        except types.MagiCaptureError:
            continue
        raise AssertionError(f"{name} reached {path}")
