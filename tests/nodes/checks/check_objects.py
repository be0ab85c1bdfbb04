"""A pet or a thing: the pack's cat with its masks, DINO of the user's, and the object loss in the training node."""

import json
from pathlib import Path

import torch
from check_photos import refused, run_face_mask
from check_restore import part
from check_training import inputs
from extent import newest_alone


def save_dino(pack, name="dino_deitsmall16_pretrain.pth"):
    """A small one's state dict, its weights drawn."""
    import folder_paths

    path = Path(folder_paths.models_dir, "dino", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = part(pack, "magicapture_core.dino").Dino(64, 2, 8, 4)
    torch.save({key: torch.randn_like(value) * 0.2 for key, value in net.state_dict().items()}, path)
    return name


def nodes(pack):
    part(pack, "nodes.folders").register_models()  # as the entry point does
    return part(pack, "nodes.objects")


def cat(pack, folder):
    images, names, _, masks = part(pack, "nodes.photos").LoadPhotos.execute(folder).args
    assert len(images) == len(masks) == 4
    return run_face_mask(pack, images, 64, masks=masks, file_names=names, shape="own", min_face_size=8)


def check_known_features_first_and_a_broken_file_in_one_line(pack):
    known, other = save_dino(pack), save_dino(pack, "a.pth")
    options = nodes(pack).LoadObjectFeatures.define_schema().inputs[0].options
    assert options.index(known) < options.index(other), options
    with refused("model_name: no DINO found"):
        nodes(pack).LoadObjectFeatures.execute(nodes(pack).NO_FILE)


def check_the_cat_is_framed_by_its_masks(pack):
    for folder in ("sample: object", "sample: object style"):
        images, masks, faces, _, report, _ = cat(pack, folder)
        assert images.shape == (4, 64, 64, 3)
        assert all(face.landmarks is None for face in faces)
        share = masks.mean((1, 2))
        assert ((share > 0.1) & (share < 0.6)).all(), share
        assert "your mask" in report


def check_photos_without_masks_say_so(pack):
    images = part(pack, "nodes.photos").LoadPhotos.execute("sample: person").args[0]
    with refused("no mask for it"):
        run_face_mask(pack, images, 64, shape="own")


@newest_alone
def check_training_with_object_features(pack, loaded):
    """The term is there, the network is back on the CPU, and each kind takes its own network alone."""
    train, settings = part(pack, "nodes.train"), part(pack, "magicapture_core.config")
    dino = nodes(pack).LoadObjectFeatures.execute(save_dino(pack))[0]
    given = inputs(pack, loaded, name="cat")
    values = given["settings"].model_dump()
    values |= {"kind": "object", "subject": {**values["subject"], "initializer_token": "cat"}}
    values["loss"]["identity_max_timestep"] = 1000
    given |= {"settings": settings.parse_config(values)}
    for side, folder in (("subject", "sample: object"), ("style", "sample: object style")):
        given |= dict(zip((f"{side}_images", f"{side}_masks", f"{side}_faces"), cat(pack, folder)[:3], strict=True))
    node = train.TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    node.execute(**given, object_features=dino)
    [result] = part(pack, "nodes.folders").runs_folder("cat").glob("result-*.json")
    history = json.loads(result.read_text())["history"]
    assert history[-1][2] > 0, history
    assert dino.cls_token.device.type == "cpu"
    given["settings"] = settings.parse_config({**values, "kind": "person"})
    with refused("kind is person"):
        node.execute(**given, object_features=dino)
