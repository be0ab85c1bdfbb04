"""TrainSeFiIdentity in-process: what it leaves alone, what it keeps, how Cancel ends it, and that its file works."""

import contextlib
from pathlib import Path

import torch
from check_attention import encode
from check_identity import TEXT, applied, predictions, without_stages
from check_restore import part, refused
from check_training import Steps, as_bytes, same
from extent import newest_alone

STEPS = 3


def node(pack):
    return part(pack, "nodes.sefi_train").TrainSeFiIdentity.PREPARE_CLASS_CLONE(None)


def picture(seed=0, height=64, width=64):
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def inputs(pack, loaded, images=(), **changes):
    """Vectors, at a rate at which three steps can be seen."""
    config = part(pack, "magicapture_core.sefi.config").SefiConfig
    widgets = config(resolution=64, num_steps=STEPS, parts="vectors", learning_rate=0.01).model_dump()
    single = dict(zip(("model", "clip", "vae"), loaded, strict=True)) | widgets
    single |= {"name": "inside_sefi", "preview_every": 0, "train_again": False, **changes}
    return {"images": [*images] or [picture()], **{name: [value] for name, value in single.items()}}


def run(pack, loaded, images=(), **changes):
    return node(pack).execute(**inputs(pack, loaded, images, **changes)).args


def cancelled(pack, loaded, at, **changes):
    """Steps seen until Cancel, which the node has to pass on."""
    import comfy.model_management

    with Steps(cancel_at=at) as steps, contextlib.suppress(comfy.model_management.InterruptProcessingException):
        run(pack, loaded, **changes)
        raise AssertionError("nothing stopped it")
    return steps.seen


def identities(name="*"):
    import folder_paths

    return sorted(Path(folder_paths.get_folder_paths("sefi_identities")[0]).glob(f"{name}.safetensors"))


@newest_alone
def check_cancel_resume_keep_and_use(pack, loaded):
    """Cancel within a step, the models untouched; the same again ends as if it had never stopped; then it is kept."""
    import folder_paths

    before = as_bytes(loaded)
    whole, *_ = run(pack, loaded, name="whole", preview_every=2)
    assert cancelled(pack, loaded, at=2)[-1] == 2
    assert same(before, as_bytes(loaded))
    folder = Path(folder_paths.get_output_directory()) / "magicapture" / "inside_sefi"
    assert len(list(folder.glob("state-*.safetensors"))) == 1
    assert not identities("inside_sefi")

    with Steps() as steps:
        identity, samples, curves, report = run(pack, loaded)
    assert min(step for step in steps.seen if step) == 3, steps.seen
    assert f"{STEPS} steps, gone on from step 2" in report.split("\n"), report
    assert torch.equal(identity.stages, whole.stages), "the cancel or the look at step 2 changed what was learned"
    assert samples.shape == (1, 64, 64, 3)
    assert curves.ndim == 4
    assert same(before, as_bytes(loaded))
    look_at_the_file(pack, loaded, identity)

    with Steps() as steps:
        kept, *_, report = run(pack, loaded)
    assert not steps.seen
    assert "Nothing has changed" in report
    assert torch.equal(kept.stages, identity.stages)

    other = picture()
    other[0, 0, 0, 0] = 1 - other[0, 0, 0, 0]
    for change in ({"images": [other]}, {"attention_weight": 0.01}, {"train_again": True}):
        assert cancelled(pack, loaded, at=1, **change)[-1] == 1, change

    given = {"name": ["inside_sefi"], "train_again": [False]}
    marks = [node(pack).fingerprint_inputs(**given)]
    identities("inside_sefi")[0].unlink()
    marks.append(node(pack).fingerprint_inputs(**given))
    assert marks[0] != marks[1], "a deleted file is not noticed"


def look_at_the_file(pack, loaded, identity):
    """The loader reads it, the word acts by stages, and the embedding for stock prompts is the plain word."""
    again = part(pack, "nodes.sefi_identity").LoadSeFiIdentity.execute("inside_sefi.safetensors").args[0]
    assert torch.equal(again.stages, identity.stages)
    assert again.stages.shape == (5, 2, 768)
    assert len(again.stages.flatten(0, 1).unique(dim=0)) > 2, "nothing was learned"
    model, clip = applied(pack, loaded, again)
    conditioning = encode(clip, TEXT)
    staged, plain = (predictions(model, text, [500]) for text in (conditioning, without_stages(conditioning)))
    assert not torch.equal(staged[0], plain[0])
    by_file = encode(loaded[1], TEXT.replace("<person>", "embedding:inside_sefi_sefi"))
    assert torch.equal(by_file[0][0], conditioning[0][0])


def check_photos_of_any_size_are_framed_and_told(pack):
    """Around the face of the sample; the middle of noise; a Face Mask's square as it is, with its FACES."""
    squares = part(pack, "nodes.portraits").to_squares
    face = part(pack, "magicapture_core.types").Face(box=torch.tensor([8.0, 8.0, 40.0, 48.0]))
    detector = part(pack, "nodes.portraits").face_detector()
    sample = part(pack, "nodes.photos").LoadPhotos.execute("sample: one photo").args[0]
    assert len(sample) == 1
    with torch.inference_mode(False):
        framed, notes = squares([*sample, picture(1, 48, 96)], None, 64, detector)
        taken, _ = squares([picture()], [face], 64, detector)
        _, blind = squares(sample, None, 64, None)
        for wrong in ([picture()] * 2, [picture(0, 48, 96)]):
            with refused("faces: they belong to 1 square"):
                squares(wrong, [face], 64, detector)
    assert framed.images.shape == (2, 3, 64, 64)
    assert framed.masks.all()
    assert "one face" in notes[0]
    assert "took the photo's middle, 48 pixels" in notes[1]
    middle = picture(1, 48, 96).movedim(-1, 1)[..., 24:72]
    assert torch.equal(framed.images[1:], part(pack, "magicapture_core.images").resize(middle, (64, 64)))
    assert torch.equal(taken.images, picture().movedim(-1, 1))
    assert taken.faces[0].box.tolist() == face.box.tolist()
    assert "no face networks" in blind[0]


def check_likeness_to_no_face_is_refused(pack, loaded):
    """Before anything is trained: it would silently be none."""
    with refused("face_recognition: no face is found in images (+ photo 1: took the photo's middle"):
        run(pack, loaded, face_recognition=torch.nn.Identity())


def check_a_list_of_photos_is_one_training(pack):
    """As Load Photos gives them."""
    assert node(pack).INPUT_IS_LIST


def check_every_setting_has_one_widget(pack):
    sefi, sockets = part(pack, "magicapture_core.sefi.config"), part(pack, "nodes.sockets")
    default, order = sefi.SefiConfig(), part(pack, "nodes.sefi_train").WIDGETS
    widgets = {socket.id: socket.default for socket in sockets.settings_sockets(default, order)}
    assert {name for (name,), *_ in sockets.leaves(default)} == set(widgets)
    assert sefi.parse_sefi_config(sockets.settings_values(default, widgets)) == default
