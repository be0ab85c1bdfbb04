"""LoadPhotos on real files in ComfyUI's input folder, and FaceMask on what it gives."""

import contextlib
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def module(pack, name):
    return import_module(f"{pack.__name__}.{name}")


@contextlib.contextmanager
def refused(*parts):
    """A MagiCaptureError whose message holds every part. The trees' Pythons have no pytest."""
    message = ""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "MagiCaptureError":
            raise
        message = str(error)
    assert message, "nothing was refused"
    assert all(part in message for part in parts), message


def input_folder(name):
    import folder_paths

    folder = Path(folder_paths.get_input_directory()) / name
    folder.mkdir(exist_ok=True)
    return folder


def run_face_mask(pack, images, resolution=64, masks=None, file_names=None, **options):
    masks_module, core = module(pack, "nodes.masks"), module(pack, "magicapture_core.masks")
    widgets = core.MaskOptions().model_dump() | options
    widgets = {name: [value] for name, value in widgets.items()} | {"resolution": [resolution]}
    return masks_module.FaceMask.execute(images=images, masks=masks, file_names=file_names, **widgets).args


def check_a_prompt_of_the_first_release_runs(pack):
    """Saved in API format it names no widget that came later: each of them is optional and has its default."""
    face_mask = module(pack, "nodes.masks").FaceMask
    info = face_mask.GET_NODE_INFO_V1()["input"]
    later = {"hair", "classes", "all_faces", "combine"}
    released = module(pack, "magicapture_core.masks").MaskOptions().model_dump().keys() - later
    assert info["required"].keys() == {"images", "resolution", *released}
    assert info["optional"].keys() == {*later, "masks", "file_names"}
    (first, *_), *_ = module(pack, "nodes.photos").LoadPhotos.execute("sample: person").args
    widgets = {name: [info["required"][name][1]["default"]] for name in released}
    then = face_mask.execute(images=[first], resolution=[64], **widgets).args
    for old, new in zip(then, run_face_mask(pack, [first]), strict=True):
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else str(old) == str(new)


def check_masks_lie_in_a_folder_of_their_own(pack):
    """By the name before the ending; small and black where there is none; an edit makes the node run again."""
    photos, folder = module(pack, "nodes.photos"), input_folder("masked")
    (folder / "masks").mkdir(exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 30), "gray").save(folder / name)
    before = photos.LoadPhotos.fingerprint_inputs("masked")
    Image.new("L", (40, 30), 255).save(folder / "masks" / "b.png")
    images, names, report, masks = photos.LoadPhotos.execute("masked").args
    assert names == ["a.jpg", "b.jpg"]
    assert [tuple(mask.shape) for mask in masks] == [(1, 64, 64), (1, 30, 40)]
    assert [float(mask.mean()) for mask in masks] == [0, 1]
    assert len(images) == 2
    assert photos.LoadPhotos.fingerprint_inputs("masked") != before
    assert "a.jpg: 40 x 30 pixels; no mask" in report
    assert "b.jpg: 40 x 30 pixels; with a mask" in report
    *_, report, _ = run_face_mask(pack, images, masks=masks, file_names=names, shape="own", min_face_size=16)
    assert "- a.jpg: no mask for it" in report
    assert "b.jpg: your mask" in report


def check_what_a_folder_of_masks_may_hold(pack):
    """No picture at all; a mask of nobody's, which is named; two photos of one name, where no mask has it."""
    photos, folder = module(pack, "nodes.photos"), input_folder("left_behind")
    (folder / "masks").mkdir(exist_ok=True)
    (folder / "masks" / ".DS_Store").write_bytes(b"no picture")
    (folder / "masks" / "Thumbs.db").write_bytes(b"no picture")
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (40, 30), "gray").save(folder / name)
    _, names, report, masks = photos.LoadPhotos.execute("left_behind").args
    assert names == ["a.jpg", "a.png"]
    assert report.count("no mask") == 2
    assert not any(mask.any() for mask in masks)
    Image.new("L", (40, 30), 255).save(folder / "masks" / "a_00001_.png")
    _, _, report, _ = photos.LoadPhotos.execute("left_behind").args
    assert "- masks/a_00001_.png: no photo has this name" in report
    Image.new("L", (40, 30), 255).save(folder / "masks" / "a.png")
    with refused("a.jpg and a.png"):
        photos.LoadPhotos.execute("left_behind")
    options = photos.photo_folders()
    assert "left_behind" in options
    assert "left_behind/masks" not in options


def check_samples_give_portraits(pack):
    """A fresh install: the pack's pictures come through Load Photos and Face Mask, all of them, on both sides."""
    photos = module(pack, "nodes.photos")
    for folder in ("sample: person", "sample: style"):
        images, names, report, given = photos.LoadPhotos.execute(folder).args
        assert not any(mask.any() for mask in given)
        assert "mask" not in report
        assert len(images) == len(names) == 4
        assert all(image.shape[0] == 1 and image.shape[-1] == 3 for image in images)
        squares, masks, faces, overlay, report, _ = run_face_mask(pack, images, 512, file_names=names)
        assert "usable" not in report
        assert squares.shape == overlay.shape == (4, 512, 512, 3)
        assert masks.shape == (4, 512, 512)
        assert [face.file_name for face in faces] == names
        assert all(name in report for name in names)
        assert not torch.equal(squares, overlay)
        share = masks.mean((1, 2))
        assert ((share > 0.03) & (share < 0.5)).all(), share


def check_odd_files_are_named(pack):
    """Turned by EXIF, grey, transparent, 16-bit are loaded upright as RGB; a broken file is named, the rest goes on."""
    photos, folder = module(pack, "nodes.photos"), input_folder("odd")
    wide = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (40, 1, 3)))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(folder / "turned.jpg", exif=exif)
    wide.convert("L").save(folder / "grey.png")
    wide.convert("RGBA").save(folder / "clear.png")
    Image.fromarray(np.full((40, 60), 65535, np.uint16)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a photo")
    images, names, report, _ = photos.LoadPhotos.execute("odd").args
    shapes = dict(zip(names, (tuple(image.shape[1:]) for image in images), strict=True))
    assert shapes == {
        "clear.png": (40, 60, 3),
        "deep.png": (40, 60, 3),
        "grey.png": (40, 60, 3),
        "turned.jpg": (60, 40, 3),
    }
    assert images[names.index("deep.png")].min() > 0.99
    assert "- broken.jpg" in report
    assert "notes.txt" not in report


def check_folder_is_looked_at_again(pack):
    """The fingerprint changes with a new, an edited and a removed file, and with nothing else."""
    photos, folder = module(pack, "nodes.photos"), input_folder("changing")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    seen = [photos.LoadPhotos.fingerprint_inputs("changing")]
    Image.new("RGB", (9, 9), "red").save(folder / "b.png")
    seen.append(photos.LoadPhotos.fingerprint_inputs("changing"))
    Image.new("RGB", (30, 30), "blue").save(folder / "b.png")
    seen.append(photos.LoadPhotos.fingerprint_inputs("changing"))
    assert seen[0] != seen[1] != seen[2]
    assert photos.LoadPhotos.fingerprint_inputs("changing") == seen[2]
    (folder / "b.png").unlink()
    assert photos.LoadPhotos.fingerprint_inputs("changing") == seen[0]
    assert "a.png" not in str(seen), "ComfyUI writes it into every picture that is saved"


def check_only_folders_of_the_list(pack):
    """Names that leave the input folder, or that are not there, are refused in words."""
    photos = module(pack, "nodes.photos")
    with refused("outside"):
        photos.LoadPhotos.execute("../output")
    with refused("nowhere"):
        photos.LoadPhotos.execute("nowhere")


def check_own_masks_need_no_networks(pack, tmp_path):
    """With a mask for every photo the face networks are not asked for, and the face lies where the mask is."""
    import folder_paths

    images = [torch.rand(1, 90, 120, 3)]
    mask = torch.zeros(1, 90, 120)
    mask[:, 20:60, 50:80] = 1
    known = folder_paths.folder_names_and_paths.pop("magicapture")
    folder_paths.add_model_folder_path("magicapture", str(tmp_path))
    default, os.environ["MAGICAPTURE_MODELS"] = os.environ["MAGICAPTURE_MODELS"], str(tmp_path)
    try:
        assert module(pack, "nodes.portraits").face_detector(required=False) is None
        squares, masks, faces, _, report, _ = run_face_mask(pack, images, 64, masks=[mask])
        with refused("models get faces"):
            run_face_mask(pack, images)
        with refused("models get faces"):
            run_face_mask(pack, images, masks=[torch.zeros(1, 90, 120)])
        with refused("models get faces"):
            run_face_mask(pack, images, masks=[mask], combine="add")
    finally:
        os.environ["MAGICAPTURE_MODELS"] = default
        folder_paths.folder_names_and_paths["magicapture"] = known
    assert squares.shape == (1, 64, 64, 3)
    assert 0.1 < masks.mean() < 0.6
    assert masks[0, 32, 32] == 1
    assert "photo 1" in report
    assert len(faces) == 1


def check_counts_must_fit(pack):
    """Masks and names that do not belong to the images are refused with both numbers."""
    images = [torch.rand(2, 64, 64, 3)]
    with refused("1 masks for 2 images"):
        run_face_mask(pack, images, masks=[torch.ones(1, 64, 64)])
    with refused("1 names for 2 images"):
        run_face_mask(pack, images, file_names=["a.png"])


def check_photos_without_a_face(pack):
    """Noise beside a sample: the sample is used, the noise is named; noise alone is refused by name."""
    photos = module(pack, "nodes.photos")
    images, names, *_ = photos.LoadPhotos.execute("sample: person").args
    noise = torch.rand(1, 200, 200, 3, generator=torch.Generator().manual_seed(0))
    squares, *_, report, sheet = run_face_mask(pack, [images[0], noise], file_names=[names[0], "noise.png"])
    assert len(squares) == 1
    assert "- noise.png: no face" in report
    assert sheet.shape[0] == 1
    assert sheet.shape[2] > 2 * 256
    with refused("noise.png", "no face"):
        run_face_mask(pack, [noise], file_names=["noise.png"])


def check_the_mask_editor_and_back(pack):
    """A photo of 513 x 771 that ComfyUI's mask editor saved: transparent where the user painted, its colours kept.
    Load Image makes the paint white; it replaces, is added to or taken away from the mask, in its own place."""
    photos, load_image = module(pack, "nodes.photos"), import_module("nodes").LoadImage().load_image
    (first, *_), *_ = photos.LoadPhotos.execute("sample: person").args
    photo = Image.fromarray((first[0].numpy() * 255).round().astype(np.uint8)).resize((513, 771))
    alpha = Image.new("L", photo.size, 255)
    alpha.paste(0, (180, 300, 300, 400))  # nose and cheeks
    painted = photo.convert("RGBA")
    painted.putalpha(alpha)
    folder = input_folder("clipspace")
    painted.save(folder / "painted.png")
    photo.save(folder / "plain.png")
    image, mask = load_image("clipspace/painted.png")
    untouched, none = load_image("clipspace/plain.png")
    assert torch.equal(image, untouched)
    assert mask.shape == (1, 771, 513)
    assert not none.any()
    squares, given, *_ = run_face_mask(pack, [image], 256, masks=[mask])
    plain, oval, *_ = run_face_mask(pack, [untouched], 256, masks=[none])
    added, both, *_ = run_face_mask(pack, [image], 256, masks=[mask], combine="add")
    taken, rest, *_ = run_face_mask(pack, [image], 256, masks=[mask], combine="subtract")
    for same in (squares, added, taken):
        assert torch.equal(same, plain)
    assert torch.equal(both, torch.maximum(oval, given))
    assert torch.equal(rest, oval * (1 - given))
    assert abs(given.sum() / (120 * 100 * (256 / 513) ** 2) - 1) < 0.02
    twice, same_mask, *_ = run_face_mask(pack, [plain], 256, masks=[rest])  # the square itself, painted on again
    assert torch.equal(twice, plain)
    assert torch.equal(same_mask, rest)


def check_odd_pictures_and_masks(pack):
    """Grey and transparent pictures, several sizes in a list, a mask that is white all over; a black one where the
    shape is own."""
    photos = module(pack, "nodes.photos")
    (first, second, *_), *_ = photos.LoadPhotos.execute("sample: person").args
    grey = second.mean(-1, keepdim=True)
    clear = torch.cat([second[:, 100:613, 7:], torch.zeros(1, 513, 633, 1)], -1)
    squares, masks, *_, report, _ = run_face_mask(pack, [first, grey, clear], 64)
    assert squares.shape == (3, 64, 64, 3)
    assert masks.any(2).any(1).all()
    assert report.count("one face") == 3
    _, masks, *_ = run_face_mask(pack, [first], 64, masks=[torch.ones(1, 64, 53)])
    assert masks.min() > 0.99
    with refused("photo 1", "no mask for it"):
        run_face_mask(pack, [first], 64, masks=[torch.zeros(1, 64, 64)], shape="own")
    with refused("classes", "ears is none"):
        run_face_mask(pack, [first], 64, shape="custom", classes="skin, ears")


def check_skin_and_hair_ask_for_the_parser(pack):
    """In one line that names the file, its folder and the package; each way to ask for it."""
    wanted: list[dict[str, Any]] = [{"shape": "parsed"}, {"shape": "skin"}, {"shape": "custom"}, {"hair": True}]
    for options in wanted:
        with refused("parsing_bisenet.pth", "models/facedetection", "pip install facexlib"):
            run_face_mask(pack, [torch.rand(1, 90, 120, 3)], **options)


def check_sides_must_belong_together(pack):
    """What the training is given: square, masks of the same size and number, faces of the same number; else refused."""
    portraits = module(pack, "nodes.portraits")
    images, masks = torch.rand(2, 64, 64, 3), torch.ones(2, 64, 64)
    side, notes = portraits.to_portraits("subject", images, masks, None, 128)
    assert side.images.shape == (2, 3, 128, 128)
    assert side.masks.shape == (2, 1, 128, 128)
    assert "scaled from 64" in notes[0]
    assert "FACES not connected" in notes[1]
    for bad in (
        (torch.rand(2, 64, 96, 3), torch.ones(2, 64, 96), None),
        (images, masks[:1], None),
        (images, torch.ones(2, 32, 32), None),
        (images, masks, []),
    ):
        with refused("subject_", "Face Mask"):
            portraits.to_portraits("subject", *bad, 64)
