"""The training node in-process: what it leaves alone, what it keeps, and how Cancel ends it."""

import contextlib
from importlib import import_module
from pathlib import Path

import torch
from crafted import random_artifact
from extent import newest_alone
from torch.nn.modules.module import register_module_forward_pre_hook


def module(pack, name):
    return import_module(f"{pack.__name__}.{name}")


def inputs(pack, loaded, **changes):
    model, clip, vae = loaded
    config = module(pack, "magicapture_core.config").parse_config(
        {
            "resolution": 64,
            "inversion": {"num_steps": 2},
            "tuning": {"num_steps": 2},
            "loss": {"attention_downscale": 2},
        }
    )
    masks = torch.zeros(2, 64, 64)
    masks[:, 16:48, 16:48] = 1
    pictures = [torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    return {
        "model": model,
        "clip": clip,
        "vae": vae,
        "subject_images": pictures[0],
        "subject_masks": masks,
        "style_images": pictures[1],
        "style_masks": masks,
        "name": "inside",
        "preview_every": 0,
        "train_again": False,
        "subject_faces": None,
        "style_faces": None,
        "settings": config,
    } | changes


def as_bytes(loaded):
    model, clip, vae = loaded
    parts = {"model": model, "clip": clip.patcher, "vae": vae.patcher}
    return {
        f"{part}.{key}": value.flatten().view(torch.uint8).clone()
        for part, patcher in parts.items()
        for key, value in patcher.model.state_dict().items()
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class Steps:
    """Watches the progress bar of the node; presses Cancel at a step."""

    def __init__(self, cancel_at=0):
        self.seen, self.cancel_at = [], cancel_at

    def __enter__(self):
        import comfy.model_management
        import comfy.utils

        def hook(value, total, preview, node_id=None):
            self.seen.append(value)
            if value == self.cancel_at:
                comfy.model_management.interrupt_current_processing(True)

        comfy.utils.set_progress_bar_global_hook(hook)
        return self

    def __exit__(self, *_):
        import comfy.utils

        comfy.utils.set_progress_bar_global_hook(None)


def check_cancel_resume_and_keep(pack, loaded):
    """Cancel stops before the next step ends, the models stay as they are, the next run goes on, then it is kept."""
    import comfy.model_management
    import folder_paths

    node = module(pack, "nodes.train").TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    model, clip, _ = loaded
    patched, _, _ = module(pack, "nodes.patching").attach(random_artifact(pack), model, clip, 1.0, 1.0)
    comfy.model_management.load_models_gpu([patched])  # somebody's LoRA is in the shared module
    comfy.model_management.unload_all_models()
    before, given = as_bytes(loaded), inputs(pack, loaded)
    pixels = given["subject_images"].clone()

    stopped = False
    with Steps(cancel_at=3) as steps:
        try:
            node.execute(**given)
        except comfy.model_management.InterruptProcessingException:
            stopped = True
    assert stopped
    assert steps.seen[-1] == 3
    assert same(before, as_bytes(loaded))
    folder = Path(folder_paths.get_output_directory()) / "magicapture" / "inside"
    assert len(list(folder.glob("state-*.safetensors"))) == 1
    assert not list(Path(folder_paths.get_folder_paths("loras")[0]).glob("inside*"))

    with Steps() as steps:
        artifact, lora, samples, curves, report = node.execute(**given).args
    assert min(step for step in steps.seen if step) == 4, steps.seen
    assert samples.shape == (1, 64, 64, 3)
    assert curves.ndim == 4
    assert lora is artifact.lora
    assert any(weight.any() for key, weight in lora.items() if "lora_up" in key)
    assert "inside.safetensors" in report
    assert "4 steps, gone on from step 3" in report.split("\n"), report
    assert not list(folder.glob("state-*.safetensors"))

    with Steps() as steps:
        kept, *_, report = node.execute(**given).args
    assert not steps.seen
    assert "Nothing has changed" in report
    assert "4 steps" in report.split("\n"), report
    assert all(torch.equal(kept.lora[key], weight) for key, weight in lora.items())
    assert same(before, as_bytes(loaded))
    assert torch.equal(pixels, given["subject_images"])


@newest_alone
def check_another_photo_model_or_wish_trains_anew_and_a_deleted_file_is_noticed(pack, loaded):
    import folder_paths

    node = module(pack, "nodes.train").TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    patched, _, _ = module(pack, "nodes.patching").attach(random_artifact(pack), *loaded[:2], 1.0, 1.0)
    given = inputs(pack, loaded, name="anew")
    node.execute(**given)
    changed = given["style_images"].clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    for change in ({"style_images": changed}, {"model": patched}, {"train_again": True}):
        assert trains(node, given | change), change

    marks = [node.fingerprint_inputs(name="anew", train_again=False)]
    (Path(folder_paths.get_folder_paths("loras")[0]) / "anew.safetensors").unlink()
    marks.append(node.fingerprint_inputs(name="anew", train_again=False))
    assert marks[0] != marks[1]
    assert "anew" not in str(marks), "ComfyUI writes it into every picture that is saved"


def trains(node, given):
    """Whether it begins to; its first step is its last."""
    import comfy.model_management

    with Steps(cancel_at=1) as steps, contextlib.suppress(comfy.model_management.InterruptProcessingException):
        node.execute(**given)
    return bool(steps.seen)


@newest_alone
def check_out_of_memory_is_one_line_and_the_next_queue_goes_on(pack, loaded):
    """In the second step: what to do is said, the models stay as they are, and the first step is not lost."""
    node, types = module(pack, "nodes.train").TrainMagiCaptureLoRA, module(pack, "magicapture_core.types")
    node, given, before = node.PREPARE_CLASS_CLONE(None), inputs(pack, loaded, name="short"), as_bytes(loaded)

    def run_out(layer, inputs):
        if type(layer).__name__ == "UNet2DConditionModel" and 1 in steps.seen:
            raise torch.OutOfMemoryError("no GPU has this much")

    message = ""
    with Steps() as steps, register_module_forward_pre_hook(run_out):
        try:
            node.execute(**given)
        except types.MagiCaptureError as error:
            message = str(error)
    assert message.startswith("out of memory, with gradient_checkpointing and batch_size 1 too: ")
    assert "\n" not in message
    assert same(before, as_bytes(loaded))
    with Steps() as steps:
        node.execute(**given)
    assert min(step for step in steps.seen if step) == 2, steps.seen


@newest_alone
def check_more_people_and_styles_join_the_training(pack, loaded):
    """A person and a style from two chained nodes: a word and an embedding for each, called as told or by number."""
    import folder_paths

    train = module(pack, "nodes.train").TrainMagiCaptureLoRA.PREPARE_CLASS_CLONE(None)
    another, given = module(pack, "nodes.concepts").AnotherConcept, inputs(pack, loaded, name="friends")
    types = module(pack, "magicapture_core.types")
    bob = {
        "images": torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(2)),
        "masks": given["subject_masks"],
        "faces": [types.Face(box=torch.tensor([16.0, 16.0, 48.0, 48.0]))] * 2,
    }
    look = {"images": given["style_images"].flip(0), "masks": given["style_masks"]}
    person = another.execute(kind="person", **bob, placeholder_token="<bob>", initializer_token="man").args[0]
    both = another.execute(kind="style", **look, placeholder_token="", initializer_token="", more=person).args[0]
    artifact, *_, report = train.execute(**given, more=both).args
    assert "FACES not connected" in report
    assert "subject_2: FACES" not in report
    assert {token.name: (token.placeholder, token.initializer) for token in artifact.tokens} == {
        "subject": ("<subject>", "person"),
        "subject_2": ("<bob>", "man"),
        "style": ("<style>", ""),
        "style_2": ("<style_2>", ""),
    }
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    assert {path.stem for path in folder.glob("friends_*")} == {f"friends_{token.name}" for token in artifact.tokens}


def check_another_word_that_is_none_is_refused_at_its_node(pack):
    """In one line that names the widget; spaces around a word do not count, and no word is one by number."""
    another, types = module(pack, "nodes.concepts").AnotherConcept, module(pack, "magicapture_core.types")
    photos = {"kind": "person", "images": torch.rand(1, 64, 64, 3), "masks": torch.ones(1, 64, 64)}
    for word in ("bob", "<bob the builder>"):
        message = ""
        try:
            another.execute(**photos, placeholder_token=word, initializer_token="man")
        except types.MagiCaptureError as error:
            message = str(error)
        assert message.startswith(f"placeholder_token={word!r}: "), message
        assert "\n" not in message
    for word in (" <bob> ", ""):
        (concept,) = another.execute(**photos, placeholder_token=word, initializer_token="").args[0]
        assert concept.placeholder_token == word.strip()


def check_other_models_are_refused(pack, loaded):
    """An inpainting UNet and a v-prediction model, by itself or by a node, in one line each, before any training."""
    import comfy.model_base
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    weights, types = module(pack, "nodes.weights"), module(pack, "magicapture_core.types")
    model, clip, vae = loaded

    class Inpainting:
        def __init__(self, patcher):
            self.patcher, self.model, self.get_model_object = patcher, patcher.model, patcher.get_model_object

        def get_key_patches(self, prefix):
            found = self.patcher.get_key_patches(prefix)
            key = f"{prefix}input_blocks.0.0.weight"
            weight, convert = found[key][0]
            found[key] = [(torch.cat([weight, weight, weight[:, :1]], 1), convert)]
            return found

    messages = []
    kind = model.model.model_type
    velocity = comfy.model_base.ModelType.V_PREDICTION
    patched = ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    for broken, predicts in ((Inpainting(model), kind), (model, velocity), (patched, kind)):
        model.model.model_type = predicts
        try:
            with torch.inference_mode(False):
                weights.plain_backbone(broken, clip, vae)
        except types.MagiCaptureError as error:
            messages.append(str(error))
        finally:
            model.model.model_type = kind
    assert len(messages) == 3
    assert "inpainting" in messages[0]
    assert all("v_prediction" in message for message in messages[1:])
    assert not any("\n" in message for message in messages)
