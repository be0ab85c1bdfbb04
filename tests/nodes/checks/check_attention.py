"""Recording against hooks of its own on the projections, and against sampling without it."""

import contextlib
import sys
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

PROMPT = "a photo of a red dog"
RUN = {"steps": 3, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "seed": 5}
CPU_LIMIT = 1e-5  # the same product in another order of summation


@contextlib.contextmanager
def refused(message):
    """The trees' Pythons have no pytest."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "MagiCaptureError" or message not in str(error):
            raise
    else:
        raise AssertionError(f"nothing was raised, expected: {message}")


def part(pack, name):
    return sys.modules[f"{pack.__name__}.{name}"]


def record(pack, model, clip, prompt=PROMPT, words="dog, photo", max_grid=32, artifact=None):
    recording = part(pack, "nodes.recording")
    return recording.record_attention(model, clip, prompt, words, max_grid, artifact)


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def noise(num_pictures=1, size=(8, 8)):
    return torch.randn(num_pictures, 4, *size, generator=torch.Generator().manual_seed(0))


def sample(model, clip, start=None, prompt=PROMPT, negative="blurry", **changes):
    import comfy.sample

    run = {**RUN, **changes}
    start = noise() if start is None else start
    seed, order = run.pop("seed"), ("steps", "cfg", "sampler_name", "scheduler")
    positive, negative = encode(clip, prompt), encode(clip, negative)
    return comfy.sample.sample(
        model, start, *(run[name] for name in order), positive, negative, torch.zeros_like(start), seed=seed
    )


class UNetLog:
    """Calls of the UNet, and queries and keys of its cross-attentions, by hooks on torch modules."""

    def __init__(self, model):
        self.unet, self.calls, self.kinds, self.handles = model.model.diffusion_model, 0, [], []
        self.inputs = []  # per call: {layer: [query, key]} before the heads are split

    def __enter__(self):
        def begin(_module, _args, kwargs):
            self.calls += 1
            self.inputs.append({})
            self.kinds.append(kwargs["transformer_options"]["cond_or_uncond"])

        self.handles.append(self.unet.register_forward_pre_hook(begin, with_kwargs=True))
        for name, module in self.unet.named_modules():
            if name.endswith(("attn2.to_q", "attn2.to_k")):
                self.handles.append(module.register_forward_hook(self.keep(name)))
        return self

    def keep(self, name):
        layer, kind = name.rsplit(".", 1)

        def hook(_module, _args, output):
            self.inputs[-1].setdefault(layer, {})[kind] = output

        return hook

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def maps(self, call, column, width=8):
        """By hand, [1,h,w] per layer: softmax over all columns, mean over heads, the positive prompt's row."""
        row = self.kinds[call].index(0)
        for layer, states in self.inputs[call].items():
            heads = self.unet.get_submodule(layer).heads
            query, key = (states[k][row].unflatten(-1, (heads, -1)).transpose(0, 1) for k in ("to_q", "to_k"))
            scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
            side = int(len(states["to_q"][row]) ** 0.5)
            yield scores.softmax(-1)[:, :, column].mean(0).reshape(1, side, side)


def check_pictures_and_calls_are_those_of_plain_sampling(pack, loaded):
    model, clip, _ = loaded
    for cfg, sampler in ((7.0, "euler"), (1.0, "euler"), (7.0, "heun"), (7.0, "dpmpp_sde")):
        watched, seen = record(pack, model, clip)
        with UNetLog(model) as plain:
            expected = sample(model, clip, cfg=cfg, sampler_name=sampler)
        with UNetLog(model) as log:
            assert torch.equal(sample(watched, clip, cfg=cfg, sampler_name=sampler), expected)
        assert log.calls == plain.calls > 0
        assert seen.buckets == [0, 1, 2]


def check_maps_of_every_step_equal_a_hand_hook(pack, loaded):
    model, clip, _ = loaded
    watched, seen = record(pack, model, clip)
    with UNetLog(model) as log:
        sample(watched, clip)
    assert log.calls == 3
    for step in range(3):
        for word, column in (("dog", 6), ("photo", 2)):
            maps = list(log.maps(step, column))
            assert len(maps) == len(log.inputs[step]) > 1
            for grid in seen.grids:
                expected = torch.stack([m for m in maps if m.shape[1:] == grid]).mean(0)
                torch.testing.assert_close(seen.part(step, grid).attention(word), expected, rtol=1e-4, atol=CPU_LIMIT)


def check_a_new_sampling_starts_the_record_anew(pack, loaded):
    model, clip, _ = loaded
    watched, seen = record(pack, model, clip)
    sample(watched, clip, seed=1, start=noise() * 0.5, steps=8)
    sample(watched, clip)
    once, expected = record(pack, model, clip)
    sample(once, clip)
    assert seen.num_steps == 3
    assert torch.equal(seen.attention("dog"), expected.attention("dog"))


def check_pictures_of_a_batch_are_kept_apart(pack, loaded):
    model, clip, _ = loaded
    watched, seen = record(pack, model, clip)
    start = noise(2, (8, 12))
    sample(watched, clip, start, steps=1)
    both = seen.attention("dog")
    assert both.shape == (2, 8, 12)
    for number in range(2):
        sample(watched, clip, start[number : number + 1], steps=1)
        torch.testing.assert_close(seen.attention("dog"), both[number : number + 1], rtol=1e-3, atol=CPU_LIMIT)
    assert not torch.allclose(both[0], both[1], rtol=1e-2)


def check_fine_maps_are_left_out(pack, loaded):
    model, clip, _ = loaded
    watched, seen = record(pack, model, clip)
    sample(watched, clip, noise(1, (16, 8)), steps=1)
    grids = seen.grids
    assert max(grids) == (16, 8)
    watched, seen = record(pack, model, clip, max_grid=15)
    sample(watched, clip, noise(1, (16, 8)), steps=1)
    assert seen.grids == grids[:-1]


def check_other_attention_patches_keep_working_in_either_order(pack, loaded):
    model, clip, _ = loaded
    blocks = [(half, number) for half in ("input", "middle", "output") for number in range(12)]
    calls = []

    def halved(query, key, value, extra):
        """Stands for IP-Adapter: takes the cross-attention over, and calls the kernel without ComfyUI's options."""
        from comfy.ldm.modules.attention import optimized_attention

        calls.append(extra["block"])
        return 0.5 * optimized_attention(query, key, value, extra["n_heads"])

    patched = model.clone()
    for name in blocks:
        patched.set_model_attn2_replace(halved, *name)
    expected = sample(patched, clip)
    assert len(calls) == 3 * sum(name.endswith("attn2") for name, _ in model.model.diffusion_model.named_modules())
    assert not torch.equal(expected, sample(model, clip))

    after, seen_after = record(pack, patched, clip)
    before, seen_before = record(pack, model, clip)
    before = before.clone()
    for name in ((*block, 0) for block in blocks):  # the other way to name a block
        before.set_model_attn2_replace(halved, *name)
    for watched, seen in ((after, seen_after), (before, seen_before)):
        assert torch.equal(sample(watched, clip), expected)
        assert seen.buckets == [0, 1, 2]
    assert calls == 3 * calls[: len(calls) // 3]
    assert torch.equal(seen_after.attention("dog"), seen_before.attention("dog"))


def check_attention_overrides_keep_working(pack, loaded):
    model, clip, _ = loaded
    seen_by_override = []

    def override(attend, *args, **kwargs):
        seen_by_override.append(kwargs["transformer_options"]["block"])
        return attend(*args, **kwargs)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    expected, calls = sample(patched, clip), len(seen_by_override)
    watched, _ = record(pack, patched, clip)
    assert torch.equal(sample(watched, clip), expected)
    assert len(seen_by_override) == 2 * calls > 0


def check_two_records_see_the_same(pack, loaded):
    model, clip, _ = loaded
    once, first = record(pack, model, clip, words="dog")
    twice, second = record(pack, once, clip, words="dog, red")
    expected = sample(model, clip)
    assert torch.equal(sample(twice, clip), expected)
    torch.testing.assert_close(first.attention("dog"), second.attention("dog"), rtol=1e-4, atol=CPU_LIMIT)
    assert second.words == ("dog", "red")


def check_a_longer_negative_prompt_changes_no_map(pack, loaded):
    """ComfyUI repeats the positive prompt's 77 columns, and the repeats share the attention."""
    model, clip, _ = loaded
    watched, seen = record(pack, model, clip)
    sample(watched, clip, steps=1)
    short = seen.attention("dog")
    with UNetLog(model) as log:
        sample(watched, clip, steps=1, negative="blurry " * 100)
    assert log.kinds == [[1, 0]]  # or nothing was repeated
    torch.testing.assert_close(seen.attention("dog"), short, rtol=1e-3, atol=CPU_LIMIT)


def check_text_that_was_joined_on_is_not_read(pack, loaded):
    recording = part(pack, "nodes.recording")
    columns, context = torch.tensor([[0.0, 1.0]]), torch.randn(2, 3)
    assert recording.spread(columns, context).tolist() == [[0, 1]]
    assert recording.spread(columns, context.repeat(3, 1)).tolist() == [[0, 1, 0, 1, 0, 1]]
    assert recording.spread(columns, torch.cat([context, context.flip(0)])).tolist() == [[0, 1, 0, 0]]
    assert recording.spread(columns, torch.cat([context, context[:1]])).tolist() == [[0, 1, 0]]
    with refused("the same text as the positive prompt"):
        recording.spread(columns, context[:1])


def check_steps_follow_the_schedule(pack, loaded):
    recording = part(pack, "nodes.recording")
    schedule = torch.tensor([14.6, 7.0, 2.0, 0.5, 0.0])
    levels = [(14.6, 0), (20.0, 0), (10.0, 0), (7.0, 1), (6.9999, 1), (3.0, 1), (0.5, 3), (0.1, 3)]
    for level, step in levels:
        assert recording.step_of(torch.tensor([level, level]), schedule) == step, level
    assert recording.step_of(torch.tensor([7.0]).half(), schedule) == 1


def columns(pack, clip, prompt, words, artifact=None):
    found, weights = part(pack, "nodes.columns").word_columns(clip, prompt, words, artifact)
    assert torch.allclose(weights.sum(1), torch.ones(len(found)))
    return {word: row.nonzero().flatten().tolist() for word, row in zip(found, weights, strict=True)}


def check_words_are_found_where_they_stand(pack, loaded):
    """Column 0 is the start; then one column per token, 75 in a chunk."""
    clip = loaded[1]
    assert columns(pack, clip, "a photo of a dog", "dog, photo of") == {"dog": [5], "photo of": [2, 3]}
    assert columns(pack, clip, "a Dog, (a dog:1.4) and ((dogs))", "dog\ndogs") == {"dog": [2, 5], "dogs": [7]}
    assert columns(pack, clip, "dog dog dog", "dog dog") == {"dog dog": [1, 2, 3]}
    long = "cat " * 80 + "dog"
    assert columns(pack, clip, long, "dog") == {"dog": [77 + 6]}
    assert columns(pack, clip, "cat " * 74 + "red dog", "red dog") == {"red dog": [75, 78]}


def check_a_word_that_is_not_there_is_named(pack, loaded):
    with refused("'cat' is not in the prompt 'a photo of a dog'"):
        columns(pack, loaded[1], "a photo of a dog", "dog, cat")
    with refused("name at least one word"):
        columns(pack, loaded[1], "a photo of a dog", " , \n")


def check_another_text_encoder_is_refused(pack, loaded):
    from comfy.sdxl_clip import SDXLTokenizer

    clip = SimpleNamespace(tokenize=SDXLTokenizer().tokenize_with_weights)
    with refused("clip: it is not that of an SD1.5 model"):
        columns(pack, clip, "a photo of a dog", "dog")


def check_learned_words_are_found_as_placeholder_and_as_file(pack, loaded):
    import folder_paths

    clip = loaded[1]
    rows = {"subject": torch.randn(3, 768) * 0.02, "style": torch.randn(1, 768) * 0.02}
    artifact = SimpleNamespace(
        tokens=[SimpleNamespace(name=n, placeholder=f"<{n}>", vectors=v) for n, v in rows.items()]
    )
    ours = clip.clone()
    words = {f"<{name}>": vectors for name, vectors in rows.items()}
    ours.tokenizer = part(pack, "nodes.prompting").LearnedTokenizer(clip.tokenizer, words)
    found = columns(pack, ours, "a photo of a <subject> person", "person", artifact)
    assert found == {"<subject>": [5, 6, 7], "person": [8]}
    assert columns(pack, ours, "a <style> and <subject>", "<style>") == {"<style>": [2]}

    save_file({"clip_l": rows["subject"].half()}, f"{folder_paths.get_folder_paths('embeddings')[0]}/me.safetensors")
    text = "a photo of embedding:me person"
    assert columns(pack, clip, text, "", artifact) == {"<subject>": [4, 5, 6]}
    assert columns(pack, clip, text, "embedding:me") == {"embedding:me": [4, 5, 6]}
    with refused("<subject> is plain text to it"):
        columns(pack, clip, "a photo of <subject>", "", artifact)


def viewer(pack, **inputs):
    return view(pack, **inputs).result


def view(pack, **inputs):
    widgets = {"prompt": PROMPT, "negative_prompt": "blurry", "words": "dog, photo", "width": 64, "height": 64}
    widgets |= {**RUN, "num_images": 2, "threshold": 0.5, "max_grid": 32}
    node = part(pack, "nodes.attention").AttentionMapViewer
    node.hidden = SimpleNamespace(prompt=None, extra_pnginfo=None, unique_id="1")
    return node.execute(**{**widgets, **inputs})


def check_the_viewer_samples_what_the_ksampler_samples(pack, loaded):
    import comfy.sample

    model, clip, vae = loaded
    own = viewer(pack, model=model, clip=clip, vae=vae)
    watched, seen = record(pack, model, clip)
    start = comfy.sample.prepare_noise(torch.zeros(2, 4, 8, 8), RUN["seed"])
    images = vae.decode(sample(watched, clip, start))
    given = viewer(pack, record=seen, images=images)
    for ours, theirs in zip(own, given, strict=True):
        assert ours == theirs if isinstance(ours, str) else torch.equal(ours, theirs)


def check_the_viewer_gives_what_its_sockets_promise(pack, loaded):
    model, clip, vae = loaded
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :16] = 1
    overlay, strip, masks, report, grids, frames = viewer(pack, model=model, clip=clip, vae=vae, mask=mask)
    assert overlay.shape[0] == 1
    assert overlay.shape[1] >= 2 * 64
    assert overlay.shape[2] >= 2 * 64
    assert strip.shape[0] == 2
    assert strip.shape[2] >= 3 * 64
    assert grids.shape[0] == 2
    assert frames.shape[0] == 3  # of as many ranges of steps
    assert frames.shape[2] >= 2 * 64
    assert masks.shape == (2 * 2, 64, 64)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    lines = report.splitlines()
    assert lines[0].startswith("3 steps in 3 ranges, maps of ")
    assert [line.split(":")[0] for line in lines[1:3]] == ["dog", "photo"]
    assert lines[3] == "even attention would be outside the mask by 75.0%"


def check_the_viewer_says_what_is_missing(pack, loaded):
    model, clip, vae = loaded
    _, seen = record(pack, model, clip)
    images = torch.zeros(1, 64, 64, 3)
    for inputs, message in (
        ({}, "model: connect record and images, or model, clip and vae"),
        ({"model": model, "clip": clip}, "vae: connect"),
        ({"record": seen}, "images: connect"),
        ({"record": seen, "images": images}, "it holds no attention maps"),
        ({"model": model, "clip": clip, "vae": vae, "mask": torch.ones(3, 8, 8)}, "3 masks for 2 pictures"),
        ({"model": model, "clip": clip, "vae": vae, "prompt": "a {subject}"}, "no learned word for {subject}"),
    ):
        with refused(message):
            viewer(pack, **inputs)


def check_maps_are_drawn_live(pack, loaded):
    """Over the previewer's picture, when a new range of steps begins; none where the user wants no previews."""
    from comfy.cli_args import LatentPreviewMethod, args
    from comfy.utils import set_progress_bar_global_hook

    model, clip, vae = loaded
    shown = []
    set_progress_bar_global_hook(lambda value, total, preview, **_: shown.append((value, total, preview)))
    usual = args.preview_method
    try:
        for method, drawn in ((LatentPreviewMethod.Latent2RGB, 8), (LatentPreviewMethod.NoPreviews, 0)):
            shown.clear()
            args.preview_method = method
            viewer(pack, model=model, clip=clip, vae=vae, steps=10, num_images=1)
            previews = [preview for _, total, preview in shown if total == 10 and preview]
            assert len(previews) == drawn
            assert shown[-1][:2] == (10, 10)
            for _, picture, _ in previews:
                assert picture.width >= 2 * 256
    finally:
        args.preview_method = usual
        set_progress_bar_global_hook(None)


def check_the_node_plays_the_steps(pack, loaded):
    """The page gets one animated picture, a frame per range of steps."""
    import folder_paths
    from PIL import Image, ImageSequence

    model, clip, vae = loaded
    shown = view(pack, model=model, clip=clip, vae=vae).ui
    assert shown["animated"] == (True,)
    [played] = ({**entry} for entry in shown["images"])
    with Image.open(f"{folder_paths.get_temp_directory()}/{played['filename']}") as animation:
        assert len(ImageSequence.all_frames(animation)) == 3


def check_many_pictures_are_played_smaller(pack):
    """64 of them are 17796 pixels high with one word, and WebP ends at 16383."""
    import folder_paths
    from PIL import Image, ImageSequence

    attention = part(pack, "nodes.attention")
    frames = torch.zeros(2, 3, 17796, 260)
    frames[1, :, 8898:] = 1
    node = attention.AttentionMapViewer
    node.hidden = SimpleNamespace(prompt=None, extra_pnginfo=None, unique_id="1")
    [played] = ({**entry} for entry in attention.animation(frames, node)["images"])
    with Image.open(f"{folder_paths.get_temp_directory()}/{played['filename']}") as animation:
        first, second = (frame.convert("L") for frame in ImageSequence.all_frames(animation))
    assert first.size == (60, 4096)
    assert max(first.tobytes()) < 8
    rows = second.resize((1, 8)).tobytes()  # the whole of it is there: the second is white from its middle on
    assert max(rows[:3]) < 8
    assert min(rows[5:]) > 247
