"""LoadFaceRestorer and RestoreAndUpscale with small real networks, through ComfyUI's own loaders."""

import contextlib
import importlib
from pathlib import Path

import torch
from extent import newest_alone

SIZES = {"n_embed": 16, "embed_dim": 32, "ch": 32, "out_ch": 3, "ch_mult": (1,) * 6, "num_res_blocks": 1}
REST = {"attn_resolutions": (16,), "dropout": 0.0, "in_channels": 3, "resolution": 512, "z_channels": 32}


@contextlib.contextmanager
def refused(message):
    """The trees' Pythons have no pytest."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "MagiCaptureError" or not str(error).startswith(message) or "\n" in str(error):
            raise
    else:
        raise AssertionError(f"nothing was raised, expected: {message}")


def part(pack, name):
    return importlib.import_module(f"{pack.__name__}.{name}")


def nodes(pack):
    part(pack, "nodes.folders").register_models()  # as the entry point does
    restore = part(pack, "nodes.restore")
    restore.restorer_files()  # as the page does, which asks for the list
    return restore


def samples(pack):
    """Two sample pictures as IMAGE [2,H,W,3]."""
    images = part(pack, "magicapture_core.images")
    folder = Path(pack.__file__).parent / "magicapture_core" / "tiny" / "samples"
    photos = [images.load_photo(folder / f"person_{number}.jpg") for number in (1, 2)]
    return torch.stack(photos).movedim(1, -1)


def save_restorer(name="RestoreFormer.pth"):
    import folder_paths
    from spandrel.architectures.RestoreFormer import RestoreFormer

    torch.manual_seed(0)
    model = RestoreFormer(**SIZES, **REST, double_z=False, enable_mid=True, head_size=8)
    folder = Path(folder_paths.models_dir, "facerestore_models")
    folder.mkdir(exist_ok=True)
    torch.save({"params_ema": model.state_dict()}, folder / name)
    return name


def load_upscaler(name="compact.pth"):
    """By ComfyUI's own node."""
    import folder_paths
    from comfy_extras.nodes_upscale_model import UpscaleModelLoader
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    folder = Path(folder_paths.models_dir, "upscale_models")
    folder.mkdir(exist_ok=True)
    torch.save(Compact(num_feat=8, num_conv=1, upscale=4).state_dict(), folder / name)
    return UpscaleModelLoader.execute(name)[0]


def restore_list(pack, images, upscale_by=1.0, fidelity=0.5, **lists):
    """As ComfyUI hands lists over: several pictures or masks, one of each other thing."""
    finished, report, *_ = nodes(pack).RestoreAndUpscale.execute(images, [upscale_by], [fidelity], **lists).args
    return finished, report.split("\n")


def restore(pack, images, upscale_by=2.0, fidelity=0.5, **sockets):
    """One batch."""
    lists = {name: [value] for name, value in sockets.items()}
    [finished], report = restore_list(pack, [images], upscale_by, fidelity, **lists)
    return finished, report


def check_a_file_in_the_folder_is_listed_and_loads(pack):
    name = save_restorer("listed.pth")
    loader = nodes(pack).LoadFaceRestorer
    assert name in loader.define_schema().inputs[0].options
    restorer = loader.execute(name)[0]
    assert restorer.architecture == "RestoreFormer"


def load_recogniser(pack):
    """A small network with random weights: whoever is turned upside down is somebody else to it."""
    iresnet = part(pack, "magicapture_core.iresnet")
    torch.manual_seed(0)
    return iresnet.IResNet(iresnet.BLOCKS[18], 8, num_features=16).eval().requires_grad_(False)


def check_everything_connected(pack):
    images = samples(pack)
    restorer = nodes(pack).LoadFaceRestorer.execute(save_restorer())[0]
    upscaler = load_upscaler()
    plain, _ = restore(pack, images, upscale_model=upscaler)
    finished, report = restore(pack, images, upscale_model=upscaler, face_restorer=restorer)
    batch, height, width, _ = images.shape
    assert finished.shape == (batch, height * 2, width * 2, 3)
    assert finished.min() >= 0
    assert finished.max() <= 1
    assert report[0] == (
        "face restorer: RestoreFormer (fidelity has no effect on it); upscaler: RealESRGAN Compact x4"
    ), report
    assert all(line.startswith(f"picture {number}: 1 face restored (") for number, line in enumerate(report[1:-1], 1))
    assert report[-1].startswith("likeness: not checked; give a face recogniser")
    changed = (finished != plain).any(-1)
    assert all(0.02 < share < 0.6 for share in changed.float().mean((1, 2)).tolist())


def check_nothing_connected_only_enlarges(pack):
    images = samples(pack)
    finished, report = restore(pack, images, upscale_by=1.5)
    assert finished.shape[1:3] == (images.shape[1] * 3 // 2, images.shape[2] * 3 // 2)
    assert report[0] == "face restorer: none; upscaler: bicubic"
    assert report[1:] == [f"picture {n}: faces left alone, there is no face restorer" for n in (1, 2)]
    same, _ = restore(pack, images, upscale_by=1.0)
    assert torch.equal(same, images)


def check_a_picture_without_a_face_passes_through(pack):
    restorer = nodes(pack).LoadFaceRestorer.execute(save_restorer())[0]
    sky = torch.linspace(0, 1, 150).reshape(1, 1, 150, 1).expand(1, 131, 150, 3)
    finished, report = restore(pack, sky, upscale_by=1.0, face_restorer=restorer)
    assert torch.equal(finished, sky)
    assert report[1:-1] == ["picture 1: no face found, nothing restored"]


def check_the_mask_says_where(pack):
    images = samples(pack)
    _, height, width, _ = images.shape
    restorer = nodes(pack).LoadFaceRestorer.execute(save_restorer())[0]
    black = torch.zeros(1, 64, 64)  # what LoadImage gives
    finished, report = restore(pack, images[:1], upscale_by=1.0, face_restorer=restorer, mask=black)
    assert "1 face restored" in report[1]
    changed = (finished != images[:1]).any(-1)
    left = torch.zeros(1, height, width)
    left[:, :, : width // 2] = 1
    half, _ = restore(pack, images[:1], upscale_by=1.0, face_restorer=restorer, mask=left)
    assert torch.equal((half != images[:1]).any(-1), changed & left.bool())
    corner = torch.zeros(2, height, width)
    corner[:, :4, :4] = 1
    same, report = restore(pack, images, upscale_by=1.0, face_restorer=restorer, mask=corner)
    assert torch.equal(same, images)
    assert all("0 faces restored, 1 face outside of the mask left alone" in line for line in report[1:-1])


def check_a_list_is_finished_in_one_run(pack):
    """Photos of two sizes and a batch: each in its size, the batch a batch, and one report that counts on."""
    small, large, batch = torch.rand(1, 20, 30, 3), torch.rand(1, 40, 20, 3), torch.rand(2, 16, 16, 3)
    finished, report = restore_list(pack, [small, large, batch], upscale_by=2.0)
    assert [tuple(pictures.shape) for pictures in finished] == [(1, 40, 60, 3), (1, 80, 40, 3), (2, 32, 32, 3)]
    assert len(report) == 5
    assert [line.split(":")[0] for line in report[1:]] == [f"picture {number}" for number in (1, 2, 3, 4)]
    alone, _ = restore(pack, batch)
    assert torch.equal(finished[2], alone)
    schema = nodes(pack).RestoreAndUpscale.define_schema()
    assert schema.is_input_list
    assert [bool(output.is_output_list) for output in schema.outputs] == [True, False, False, False]


def check_a_list_takes_one_mask_or_one_for_each(pack):
    """Masks of any size, as a list or as a batch; the face of the second picture alone is let through."""
    images = list(samples(pack).split(1))
    restorer = nodes(pack).LoadFaceRestorer.execute(save_restorer())[0]
    corner, everywhere = torch.zeros(1, 64, 64), torch.ones(1, 32, 48)
    corner[:, 0, 0] = 1
    outside = "0 faces restored, 1 face outside of the mask left alone"
    finished, report = restore_list(pack, images, face_restorer=[restorer], mask=[corner, everywhere])
    assert torch.equal(finished[0], images[0])
    assert not torch.equal(finished[1], images[1])
    assert outside in report[1]
    assert report[2].startswith("picture 2: 1 face restored")
    finished, report = restore_list(pack, images, face_restorer=[restorer], mask=[corner])
    assert all(torch.equal(left, right) for left, right in zip(finished, images, strict=True))
    assert all(outside in line for line in report[1:-1])


@newest_alone
def check_a_face_that_lost_the_person_is_put_back(pack):
    """Byte for byte what plain upscaling gives; the same face stays restored where the threshold allows it."""
    node, images = nodes(pack), samples(pack)
    restorer, upscaler = node.LoadFaceRestorer.execute(save_restorer())[0], load_upscaler()
    compared = {"face_recognition": [load_recogniser(pack)], "reference": [images[:1], images[1:, :200]]}
    given = {"upscale_model": [upscaler], "face_restorer": [restorer], **compared}

    def run(**changes):
        return node.RestoreAndUpscale.execute([images[:1]], [2.0], [0.5], **given, **changes).args

    [plain], _ = restore_list(pack, [images[:1]], 2.0, upscale_model=[upscaler])
    [finished], report, before, after = run(max_likeness_loss=[0.0])
    assert torch.equal(finished, plain)
    assert "1 face put back as it was (" in report
    assert before == after > 0
    [finished], report, before, after = run(max_likeness_loss=[2.0])
    assert not torch.equal(finished, plain)
    assert "1 face restored (" in report
    assert after < before
    assert f"likeness: {before:.3f} before, {after:.3f} in the finished pictures, the mean of 1 face" in report
    [finished], report, before, after = run(face_index=[1])
    assert torch.equal(finished, plain)
    assert "1 face found, number 0; face_index names none of them" in report
    assert (before, after) == (0.0, 0.0)


def check_colours_are_matched_unless_switched_off(pack):
    images = samples(pack)[:1]
    restorer = nodes(pack).LoadFaceRestorer.execute(save_restorer())[0]
    matched, free = (
        restore_list(pack, [images], face_restorer=[restorer], match_colour=[on])[0][0] for on in (True, False)
    )
    shift = [(picture - images).mean((0, 1, 2)).abs().max() for picture in (matched, free)]
    assert shift[0] < 0.1 * shift[1]
    assert not torch.equal(matched, images)


def check_odd_sizes_pass(pack):
    restorer, upscaler = nodes(pack).LoadFaceRestorer.execute(save_restorer())[0], load_upscaler()
    sizes = [(1, 1), (513, 771), (1, 64)]
    pictures = [torch.zeros(1, *size, 3) for size in sizes]
    finished, report = restore_list(pack, pictures, 1.5, face_restorer=[restorer], upscale_model=[upscaler])
    expected = [(round(1.5 * height), round(1.5 * width)) for height, width in sizes]
    assert [tuple(picture.shape[1:3]) for picture in finished] == expected
    assert all(line.endswith("no face found, nothing restored") for line in report[1:-1])


def check_mistakes_get_one_line(pack):
    node, images = nodes(pack), samples(pack)
    restorer = node.LoadFaceRestorer.execute(save_restorer())[0]
    with refused("mask: 3 masks for 2 images"):
        restore(pack, images, mask=torch.ones(3, 8, 8))
    with refused("mask: 2 masks for 3 images"):
        restore_list(pack, [images, images[:1]], mask=[torch.ones(1, 8, 8), torch.ones(1, 8, 8)])
    with refused("upscale model: RestoreFormer restores faces"):
        restore(pack, images, upscale_model=restorer.descriptor)
    recogniser = load_recogniser(pack)
    with refused("reference: connect photos of the person too"):
        restore(pack, images, face_restorer=restorer, face_recognition=recogniser)
    with refused("face_recognition: connect Load Face Recognition too"):
        restore(pack, images, face_restorer=restorer, reference=images)
    with refused("reference: no face is found in it"):
        restore(pack, images, face_restorer=restorer, face_recognition=recogniser, reference=torch.zeros(1, 64, 64, 3))
    with refused("model_name: no face restorer found"):
        node.LoadFaceRestorer.execute(node.NO_FILE)


def check_an_upscale_model_without_a_patcher_is_lent_alone(pack):
    """As older loaders give it: the stock node moves it by hand, so nothing of ours may count it as loaded."""
    from comfy import model_management

    upscaler, moves = load_upscaler(), []
    vars(upscaler).pop("patcher", None)
    for name in ("model_loaded_weight_memory", "current_weight_patches_uuid"):
        vars(upscaler.model).pop(name, None)  # of the patcher
    move = upscaler.to
    upscaler.to = lambda device: moves.append(torch.device(device)) or move(device)
    before = {*vars(upscaler), *vars(upscaler.model)}
    restore(pack, samples(pack), upscale_model=upscaler)
    assert {*vars(upscaler), *vars(upscaler.model)} == before
    assert moves == [model_management.get_torch_device(), torch.device("cpu")]
    model_management.interrupt_current_processing(True)
    with contextlib.suppress(model_management.InterruptProcessingException):
        restore(pack, samples(pack), upscale_model=upscaler)
    assert len(moves) == 4, "it stayed on the device after Cancel"


def check_cancel_stops_between_tiles(pack):
    from comfy import model_management

    upscaler = load_upscaler()
    model_management.interrupt_current_processing(True)
    try:
        restore(pack, samples(pack), upscale_model=upscaler)
    except model_management.InterruptProcessingException:
        pass
    else:
        raise AssertionError("it went on after Cancel")
    finally:
        model_management.interrupt_current_processing(False)
