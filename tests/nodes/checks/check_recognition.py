"""LoadFaceRecognition and FaceSimilarity, and the identity loss inside the training node."""

import json
from pathlib import Path

import torch
from check_restore import part, refused, samples
from check_training import inputs, trains
from extent import newest_alone


def save_network(pack, name="models/antelopev2/glintr100.onnx", seed=0):
    """A small IResNet's state dict, or where the name ends in .onnx something that is no ONNX at all."""
    import folder_paths

    path = Path(folder_paths.models_dir, "insightface", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".onnx"):
        path.write_bytes(b"nothing")
    else:
        iresnet = part(pack, "magicapture_core.iresnet")
        torch.manual_seed(seed)
        torch.save(iresnet.IResNet(iresnet.BLOCKS[18], 8, num_features=16).state_dict(), path)
    return name


def nodes(pack):
    part(pack, "nodes.folders").register_models()  # as the entry point does
    return part(pack, "nodes.recognition")


def check_networks_are_listed_known_ones_first(pack):
    other, known = save_network(pack, "a/iresnet18.pth"), save_network(pack)
    options = nodes(pack).LoadFaceRecognition.define_schema().inputs[0].options
    assert options.index(known) < options.index(other), options


def check_a_broken_file_is_one_line(pack):
    with refused("glintr100.onnx"):
        nodes(pack).LoadFaceRecognition.execute(save_network(pack))
    with refused("model_name: no face recogniser found"):
        nodes(pack).LoadFaceRecognition.execute(nodes(pack).NO_FILE)


def compare(pack, images, reference):
    recogniser = nodes(pack).LoadFaceRecognition.execute(save_network(pack, "iresnet18.pth"))[0]
    score, report = nodes(pack).FaceSimilarity.execute(images, reference, [recogniser]).args
    return score, report.split("\n")


def check_similarity(pack):
    """Under inference mode, as in a node: a picture to itself, and one without a face counts 0."""
    picture = samples(pack)[:1]
    score, report = compare(pack, [picture], [picture])
    assert abs(score - 1) < 1e-4
    assert report[1] == "picture 1: 1.000"
    half, report = compare(pack, [torch.cat([picture, torch.zeros_like(picture)])], [picture])
    assert abs(half - 0.5) < 1e-4
    assert report[-1] == "picture 2: no face"
    none, report = compare(pack, [torch.zeros(1, 1, 1, 3)], [picture])
    assert none == 0
    assert report == ["mean 0.000", "picture 1: no face"]


@newest_alone
def check_similarity_takes_lists_of_all_sizes(pack):
    """One score for all: every picture is compared with all of the reference, as if both were one batch each."""
    first, second = samples(pack).split(1)
    empty = torch.zeros(2, 513, 71, 3)
    together = compare(pack, [torch.cat([first, second])], [torch.cat([first, second])])
    assert compare(pack, [first, second], [first, empty, second]) == together
    assert len(compare(pack, [first, empty], [second])[1]) == 4
    with refused("reference: no face is found in it"):
        compare(pack, [first], [empty])


def check_taesd_is_that_of_the_previews(pack):
    """Asked for by name while it is missing; then the file decodes as ComfyUI's own class of it does."""
    import folder_paths
    from comfy.taesd.taesd import TAESD

    folders, taesd = part(pack, "nodes.folders"), part(pack, "magicapture_core.taesd")
    with refused("loss_identity_decoder taesd: put taesd_decoder.safetensors into"):
        folders.taesd_file()
    theirs = TAESD()
    for number, parameter in enumerate(theirs.parameters()):
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
    path = Path(folder_paths.get_folder_paths("vae_approx")[0], "taesd_decoder.pth")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(theirs.taesd_decoder.state_dict(), path)
    folder_paths.filename_list_cache.clear()
    assert folders.taesd_file() == path
    theirs.vae_scale.data.fill_(1)
    theirs.vae_shift.data.fill_(0)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(taesd.load_taesd(path).decode(latents).sample, theirs.decode(latents))


@newest_alone
def check_training_with_a_recogniser(pack, loaded):
    """The term is there, the network stays as it was, and another network trains anew."""
    train, types = part(pack, "nodes.train"), part(pack, "magicapture_core.types")
    terms, parse_config = part(pack, "magicapture_core.kept").TERMS, part(pack, "magicapture_core.config").parse_config
    face = types.Face(
        box=torch.tensor([16.0, 16, 48, 48]),
        landmarks=torch.tensor([[25.0, 27], [39, 27], [32, 34], [26, 41], [38, 41]]),
    )
    unknown = types.Face(box=face.box)
    settings = inputs(pack, loaded)["settings"].model_dump()
    settings |= {"inversion": {"num_steps": 1}, "tuning": {"num_steps": 1}}
    settings["loss"]["identity_max_timestep"] = 1000
    given = inputs(pack, loaded, name="known", settings=parse_config(settings), style_faces=[face, face])

    node = train.TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    recogniser, other = (
        nodes(pack).LoadFaceRecognition.execute(save_network(pack, f"iresnet18_{seed}.pth", seed))[0] for seed in (0, 1)
    )
    before = {name: value.clone() for name, value in recogniser.state_dict().items()}
    given |= {"subject_faces": [face, unknown], "face_recognition": recogniser}
    report = node.execute(**given).args[-1]
    [result] = part(pack, "nodes.folders").runs_folder("known").glob("result-*.json")
    history = json.loads(result.read_text(encoding="utf-8"))["history"]
    assert "the identity loss leaves out photo 2" in report
    assert any(row[terms.index("identity")] > 0 for row in history)
    assert all(torch.equal(value, before[name]) for name, value in recogniser.state_dict().items())
    assert not trains(node, given)
    assert trains(node, given | {"face_recognition": other})
    with refused("identity loss: no subject photo"):
        node.execute(**(given | {"subject_faces": [unknown, unknown]}))
