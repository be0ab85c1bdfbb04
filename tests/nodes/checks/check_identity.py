"""LoadSeFiIdentity and ApplySeFiIdentity: the core's own predictions, through any sampler, beside everything else."""

import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from check_attention import UNetLog, encode, noise, record, sample
from check_restore import part, refused
from check_sampling import attached, compose, control_net, stock
from crafted import random_artifact, random_identity
from extent import newest_alone

TEXT = "a photo of <person> holding a ball"


def alike(pack):
    """One whose keys and values see the same word at every stage, of numbers whose mean is exact."""
    return random_identity(pack, stages=(random_identity(pack).stages[0, 0] * 64).round().expand(5, 2, -1) / 64)


def applied(pack, on, identity=None, word=""):
    node = part(pack, "nodes.sefi_identity").ApplySeFiIdentity
    return node.execute(*on[:2], identity or random_identity(pack), word).result


def load_fp32(checkpoint):
    """MODEL, CLIP and VAE; on a CPU ComfyUI would keep the CLIP in fp16."""
    import comfy.sd

    return comfy.sd.load_checkpoint_guess_config(str(checkpoint), te_model_options={"dtype": torch.float32})[:3]


def without_stages(conditioning):
    return [[tensor, {key: about[key] for key in about if "magicapture" not in key}] for tensor, about in conditioning]


def predictions(model, positive, timesteps, negative=(), cfg=1.0, start=None):
    """x_0 as ComfyUI's sampler gets it at each of the timesteps, from the same noise."""
    import comfy.sample
    import comfy.samplers

    found = []
    start = noise() if start is None else start
    sigmas = model.get_model_object("model_sampling").sigmas[[*timesteps]]

    def look(predict, x, _sigmas, extra_args, **_):
        found.extend(predict(start * sigma, sigma * torch.ones(len(x)), **extra_args) for sigma in sigmas)
        return x

    sampler, both = comfy.samplers.KSAMPLER(look), torch.tensor([1.0, 0.0])
    comfy.sample.sample_custom(model, start, cfg, sampler, both, positive, negative, torch.zeros_like(start))
    return found


def core_predictions(pack, loaded, text, timesteps, identities, artifact=None):
    """The same by the core: its prompts at a timestep, its UNet with split contexts."""
    sampler, attention = part(pack, "magicapture_core.sampler"), part(pack, "magicapture_core.attention")
    sigmas = loaded[0].get_model_object("model_sampling").sigmas
    found = []
    with torch.inference_mode(False), torch.no_grad():
        backbone = part(pack, "nodes.weights").plain_backbone(*loaded)
        with (
            sampler.applied(backbone, artifact, identities=identities) as words,
            attention.split_contexts(backbone.unet),
        ):
            embeds = sampler.PromptEmbeds(backbone, words, [text])
            for timestep in timesteps:
                sigma, start = sigmas[timestep].clone(), noise()
                scaled = start * sigma / (sigma**2 + 1).sqrt()
                predicted = backbone.unet(scaled, torch.tensor([timestep]), embeds.at(timestep)).sample
                found.append(start * sigma - sigma * predicted)
    return found


def farthest(ours, theirs, sigmas):
    """Of the noise that was predicted: x_0 = x - sigma noise."""
    return max(float((a - b).abs().max() / sigma) for a, b, sigma in zip(ours, theirs, sigmas, strict=True))


# -- what is predicted -------------------------------------------------------------------------------------------------


def check_every_stage_equals_the_core(pack, checkpoint):
    """The first and the last timestep of all five, in fp32."""
    loaded = load_fp32(checkpoint)
    identity = random_identity(pack)
    timesteps = [0, 199, 200, 399, 400, 599, 600, 799, 800, 999]
    sigmas = loaded[0].get_model_object("model_sampling").sigmas[timesteps]
    model, clip = applied(pack, loaded, identity)
    ours = predictions(model, encode(clip, TEXT), timesteps)
    theirs = core_predictions(pack, loaded, TEXT, timesteps, [identity])
    assert farthest(ours, theirs, sigmas) < 1e-3
    plain = predictions(loaded[0], encode(clip, TEXT), timesteps)
    assert farthest(ours, plain, sigmas) > 0.01


@newest_alone
def check_two_identities_with_a_lora_equal_the_core(pack, checkpoint):
    """Of five and of three stages, so that both switch at times of their own; the LoRA before, between and after."""
    loaded = load_fp32(checkpoint)
    first, second, lora = random_identity(pack), random_identity(pack, 1, 3, name="she"), random_artifact(pack)
    text, timesteps = "<person> and <anna> in the <style> style", [100, 350, 650, 900]
    sigmas = loaded[0].get_model_object("model_sampling").sigmas[timesteps]
    words = [first, replace(second, placeholder="<anna>")]
    theirs = core_predictions(pack, loaded, text, timesteps, words, lora)
    steps = [
        lambda on: applied(pack, on, first),
        lambda on: applied(pack, on, second, "<anna>"),
        lambda on: attached(pack, on, lora),
    ]
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        on = loaded[:2]
        for step in order:
            on = steps[step](on)
        assert farthest(predictions(on[0], encode(on[1], text), timesteps), theirs, sigmas) < 1e-3


def check_only_the_steps_of_a_stage_follow_its_words(pack, loaded):
    identity = random_identity(pack)
    other = replace(identity, stages=identity.stages.clone())
    other.stages[3] *= -1
    timesteps = [50, 250, 450, 599, 600, 799, 800, 950]
    before, after = (
        predictions(model, encode(clip, TEXT), timesteps)
        for model, clip in (applied(pack, loaded, identity), applied(pack, loaded, other))
    )
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [600 <= timestep < 800 for timestep in timesteps]


def projections(model, conditioning):
    """What each cross-attention makes of its contexts in one call: name -> keys, name -> values."""
    kept, handles = {}, []
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            hook = module.register_forward_hook(lambda _m, _i, output, name=name: kept.update({name: output}))
            handles.append(hook)
    predictions(model, conditioning, [500])
    for handle in handles:
        handle.remove()
    return kept


def check_keys_and_values_see_their_own(pack, loaded):
    """Only the keys' words are changed, then only the values': which of the layers' projections move."""
    identity = random_identity(pack, num_stages=1)
    others = [identity.stages.clone() for _ in range(2)]
    for role, stages in enumerate(others):
        stages[:, role] *= -1
    seen = []
    for stages in (identity.stages, *others):
        model, clip = applied(pack, loaded, replace(identity, stages=stages))
        seen.append(projections(model, encode(clip, TEXT)))
    for found, moved in zip(seen[1:], ("to_k", "to_v"), strict=True):
        for name in found:
            assert torch.equal(found[name], seen[0][name]) != name.endswith(moved), name


def check_words_alike_are_the_plain_word(pack, loaded):
    """To the byte, alone and in everything that ComfyUI does with prompts; and in as many calls of the UNet."""
    nodes = import_module("nodes")
    model, clip = applied(pack, loaded, alike(pack))
    net, picture = control_net(model), torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1

    def masked(given, others):
        [left] = nodes.ConditioningSetMask().append(given, mask, "default", 1.0)
        [right] = nodes.ConditioningSetMask().append(others, 1 - mask, "default", 1.0)
        return nodes.ConditioningCombine().combine(left, right)[0]

    ways = {
        "alone": lambda given, _: given,
        "regions": masked,
        "area": lambda given, others: others + nodes.ConditioningSetArea().append(given, 32, 64, 0, 0, 1.0)[0],
        "concat": lambda given, others: nodes.ConditioningConcat().concat(given, others)[0],
        "range": lambda given, others: (
            nodes.ConditioningSetTimestepRange().set_range(given, 0.3, 1.0)[0]
            + nodes.ConditioningSetTimestepRange().set_range(others, 0.0, 0.3)[0]
        ),
        "average": lambda given, others: nodes.ConditioningAverage().addWeighted(given, others, 1.0)[0],
        "zero": lambda given, _: nodes.ConditioningZeroOut().zero_out(given)[0],
    }
    others, negative = encode(clip, "a garden"), encode(clip, "blurry")
    for name, way in ways.items():
        for control in (False, True) if name in ("alone", "regions") else (False,):
            results = []
            for given in (encode(clip, TEXT), without_stages(encode(clip, TEXT))):
                pair = (way(given, others), negative)
                if control:
                    pair = nodes.ControlNetApplyAdvanced().apply_controlnet(*pair, net, picture, 1.0, 0.0, 1.0)
                with UNetLog(model) as log:
                    results.append((predictions(model, pair[0], [50, 950], pair[1], 5.0), log.kinds))
            (staged, kinds), (plain, plain_kinds) = results
            assert kinds == plain_kinds, name
            assert all(map(torch.equal, staged, plain)), (name, control)


def check_areas_keep_words_and_prompts_together(pack, loaded):
    """Where one side has an area, ComfyUI makes a prompt for it on the other, out of the one's dictionary."""
    met = []

    def look(query, keys, values, extra):
        kinds = extra["cond_or_uncond"]
        pairs = zip(keys.chunk(len(kinds)), values.chunk(len(kinds)), strict=True)
        met.extend((kind, torch.equal(*pair)) for kind, pair in zip(kinds, pairs, strict=True))
        return query, keys, values

    model, clip = applied(pack, loaded)
    model.set_model_attn2_patch(look)
    prompts = [encode(clip, TEXT), encode(clip, "blurry")]
    num_layers = sum(name.endswith("attn2") for name, _ in model.model.diffusion_model.named_modules())
    for side in (0, 1):
        pair = list(prompts)
        [pair[side]] = import_module("nodes").ConditioningSetArea().append(pair[side], 32, 64, 0, 0, 1.0)
        met.clear()
        predictions(model, pair[0], [500], pair[1], 4.0)
        assert set(met) == {(0, False), (1, True)}
        assert [kind for kind, _ in met].count(1 - side) == 2 * num_layers


def check_a_prompt_without_the_word_is_sampled_as_ever(pack, loaded):
    model, clip = applied(pack, loaded)
    for cfg in (7.0, 1.0):
        assert torch.equal(sample(model, clip, cfg=cfg), sample(*loaded[:2], cfg=cfg))


def check_a_sampler_without_the_patch_draws_the_plain_word(pack, loaded):
    """The MODEL of the checkpoint with the CLIP of the node: what `embedding:NAME_sefi` gives."""
    import folder_paths

    identity = random_identity(pack)
    core = part(pack, "magicapture_core.sefi.identity")
    embeddings = Path(folder_paths.get_folder_paths("embeddings")[0])
    core.save(replace(identity, name="fallback"), embeddings.parent, embeddings)
    _, clip = applied(pack, loaded, identity)
    file = TEXT.replace("<person>", "embedding:fallback_sefi")
    ours, theirs = encode(clip, TEXT)[0][0], encode(loaded[1], file)[0][0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)  # in fp16, in batches of other sizes
    expected = predictions(loaded[0], without_stages(encode(clip, TEXT)), [500])
    assert torch.equal(predictions(loaded[0], encode(clip, TEXT), [500])[0], expected[0])


def check_pictures_of_a_batch_are_those_of_each_alone(pack, loaded):
    model, clip = applied(pack, loaded)
    start, given, negative = noise(2), encode(clip, TEXT), encode(clip, "")
    both = predictions(model, given, [300, 900], negative, 4.0, start)
    for number in range(2):
        alone = predictions(model, given, [300, 900], negative, 4.0, start[number : number + 1])
        for found, expected in zip(both, alone, strict=True):
            torch.testing.assert_close(found[number : number + 1], expected, rtol=1e-3, atol=1e-3)


def check_a_batch_of_one_prompt_is_that_prompt(pack, loaded):
    """As nodes make it that give each picture of a batch a conditioning of its own."""
    model, clip = applied(pack, loaded)
    start, given, negative = noise(2), encode(clip, TEXT), encode(clip, "")
    batched = [[tensor.repeat(2, 1, 1), about] for tensor, about in given]
    single, both = (predictions(model, one, [300, 900], negative, 4.0, start) for one in (given, batched))
    assert all(map(torch.equal, both, single))


# -- prompts -----------------------------------------------------------------------------------------------------------


@newest_alone
def check_variants_are_the_words_in_their_place(pack, checkpoint):
    """Weighted, twice in a text, beside another, across the chunk of 77: each as a learned word of its own gives it."""
    loaded = load_fp32(checkpoint)
    clip = loaded[1]
    first, second = random_identity(pack), random_identity(pack, 1, 3)
    both = applied(pack, applied(pack, loaded, first), second, "<anna>")[1]
    tokenizer = part(pack, "nodes.prompting").LearnedTokenizer
    for text in (TEXT, "(<person>:1.3) and (<anna>:0.7), <person>", "cat " * 74 + "<anna> and a <person>"):
        tensor, about = encode(both, text)[0]
        prompt = about["magicapture_stages"]
        assert len(prompt.contexts) == (7 if "<anna>" in text else 5)
        expected = {(): tensor[0]}
        for moment, pair in prompt.contexts.items():
            stages = (*moment, 0)[:2]
            expected |= {(stages, role): pair[role] for role in (0, 1)}
        for place, context in expected.items():
            words = {"<person>": first.plain, "<anna>": second.plain}
            if place:
                (i, j), role = place
                words = {"<person>": first.stages[i, role, None], "<anna>": second.stages[j, role, None]}
            theirs = clip.clone()
            theirs.tokenizer = tokenizer(clip.tokenizer, words)
            torch.testing.assert_close(context, encode(theirs, text)[0][0][0], rtol=1e-4, atol=1e-4)


def check_of_prompts_that_begin_alike_each_has_its_own(pack):
    """One is the first chunk of the other."""
    from comfy.conds import CONDCrossAttn

    staging = part(pack, "nodes.staging")
    identity = random_identity(pack, num_stages=1)
    word = staging.StagedWord("<person>", identity.plain[0], identity.stages)
    long = torch.rand(3, 154, 8, generator=torch.Generator().manual_seed(0))
    prompts = [staging.StagedPrompt([word], long[:1, :end], {(0,): long[1:, :end]}) for end in (77, 154)]
    for order in (prompts, prompts[::-1]):
        for prompt in prompts:
            cond = {"model_conds": {"c_crossattn": CONDCrossAttn(prompt.plain)}}
            parts = staging.at_stage(cond, order, 500)["model_conds"]
            for name, expected in zip(("c_crossattn", staging.VALUES), prompt.contexts[(0,)], strict=True):
                assert torch.equal(parts[name].cond[0], expected)


def check_applied_twice_is_once(pack, loaded):
    from comfy.patcher_extension import WrappersMP

    once = applied(pack, loaded)
    twice = applied(pack, once)
    assert torch.equal(sample(*twice, prompt=TEXT), sample(*once, prompt=TEXT))
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.CALC_COND_BATCH, WrappersMP.DIFFUSION_MODEL):
        assert len(twice[0].get_wrappers(kind, "magicapture_stages")) == 1
    assert loaded[0].wrappers == {}
    assert type(loaded[1].cond_stage_model).__module__.startswith("comfy")


def check_what_cannot_go_together_is_told(pack, loaded):
    import_module("nodes")
    average = import_module("nodes").ConditioningAverage().addWeighted
    model, clip = applied(pack, loaded)
    [mixed] = average(encode(clip, TEXT), encode(clip, "a garden"), 0.5)
    with refused("positive, negative: a node has mixed the prompt that holds <person>"):
        predictions(model, mixed, [500])
    results = []
    for given in (encode(clip, TEXT), without_stages(encode(clip, TEXT))):  # the plain word, as its page tells
        [mixed] = average(encode(clip, "a garden"), given, 0.5)
        results.append(predictions(model, mixed, [500])[0])
    assert torch.equal(*results)
    other = random_identity(pack, 1, name="she")
    with refused("word: the CLIP knows another <person> already; give she a word of its own"):
        applied(pack, (model, clip), other)
    with refused("word: the CLIP knows another <style> already"):
        applied(pack, attached(pack, loaded), other, "<style>")
    with refused("word: the CLIP knows another <style> already; give the identity a word of its own"):
        attached(pack, applied(pack, loaded, word="<style>"))
    for word in ("anna", "<an na>", "<person>s"):
        with refused(f"word: {word!r} is not written like <person>"):
            applied(pack, loaded, word=word)
    with refused("me was trained for magicapture-tiny, not for SD1.5"):
        applied(pack, loaded, random_identity(pack, architecture="magicapture-tiny"))


# -- beside other nodes ------------------------------------------------------------------------------------------------


def check_the_composed_sampler_samples_it(pack, loaded):
    """On the patched MODEL and CLIP, the LoRA on them or not: the stock chain's very latents."""
    on = applied(pack, loaded)
    expected = stock(attached(pack, on), TEXT + " in the <style> style")
    for given in (on, attached(pack, on), applied(pack, attached(pack, loaded))):
        latents = compose(pack, (*given, loaded[2]), prompt=TEXT + " in the {style} style")[1]
        assert torch.equal(latents, expected)
    assert not torch.equal(expected, stock(attached(pack, (loaded[0], on[1])), TEXT + " in the <style> style"))


def check_a_control_net_sees_the_plain_word(pack, loaded):
    model, clip = applied(pack, loaded)
    net, picture = control_net(model), torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    contexts = []
    handle = net.control_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: contexts.append(kwargs["context"]), with_kwargs=True
    )
    with UNetLog(model) as log:
        latents = stock((model, clip), TEXT, (net, picture, 1.0))
    assert {len(kinds) for kinds in log.kinds} == {2}
    handle.remove()
    expected = {name: encode(clip, text)[0][0] for name, text in ((0, TEXT), (1, ""))}
    for kinds, context in zip(log.kinds, contexts, strict=False):
        assert torch.equal(context, torch.cat([expected[kind] for kind in kinds]))
    assert not torch.equal(latents, stock((model, clip), TEXT))
    assert not torch.equal(latents, stock((loaded[0], clip), TEXT, (net, picture, 1.0)))


def check_patches_of_others_meet_both_contexts(pack, loaded):
    """One in front of the projections and one in their place, before this node and after it."""
    met = []

    def look(query, keys, values, extra):
        met.append(not torch.equal(keys, values))
        return query, keys, values * 1.5

    def attend(query, key, value, extra):
        from comfy.ldm.modules.attention import optimized_attention

        return 0.5 * optimized_attention(query, key, value, extra["n_heads"])

    def patched(model):
        model = model.clone()
        model.set_model_attn2_patch(look)
        for name in [(half, number) for half in ("input", "middle", "output") for number in range(12)]:
            model.set_model_attn2_replace(attend, *name)
        return model

    model, clip = applied(pack, loaded)
    after = sample(patched(model), clip, prompt=TEXT)
    assert met
    assert all(met)
    before = sample(applied(pack, (patched(loaded[0]), loaded[1]))[0], clip, prompt=TEXT)
    assert torch.equal(before, after)
    assert not torch.equal(after, sample(model, clip, prompt=TEXT))


def check_its_attention_can_be_watched(pack, loaded):
    """<person> is one column, its maps are those of the keys' words, and the picture stays as it is."""
    model, clip = applied(pack, loaded)
    expected = sample(model, clip, prompt=TEXT)
    after, seen_after = record(pack, model, clip, TEXT, "<person>, ball")
    before, seen_before = record(pack, loaded[0], clip, TEXT, "<person>, ball")
    before, _ = applied(pack, (before, loaded[1]))
    for watched, seen in ((after, seen_after), (before, seen_before)):
        with UNetLog(watched) as log:
            assert torch.equal(sample(watched, clip, prompt=TEXT), expected)
        for step in range(3):
            for word, column in (("<person>", 4), ("ball", 7)):
                maps = list(log.maps(step, column))
                for grid in seen.grids:
                    mean = torch.stack([m for m in maps if m.shape[1:] == grid]).mean(0)
                    torch.testing.assert_close(seen.part(step, grid).attention(word), mean, rtol=1e-4, atol=1e-5)


# -- files -------------------------------------------------------------------------------------------------------------


def check_the_newest_identity_is_loaded(pack, loaded):
    import folder_paths

    node = part(pack, "nodes.sefi_identity").LoadSeFiIdentity
    core, lora = part(pack, "magicapture_core.sefi.identity"), part(pack, "magicapture_core.artifact")
    folder = Path(folder_paths.get_folder_paths("sefi_identities")[0])
    assert folder.name == "sefi_identities"
    with refused("there is no identity in models/sefi_identities yet"):
        node.fingerprint_inputs("newest")
    folder.mkdir(parents=True, exist_ok=True)
    first = core.save(random_identity(pack), folder)[0]
    seen = node.fingerprint_inputs("newest")
    time.sleep(0.02)
    second = core.save(random_identity(pack, 1), folder, folder / "elsewhere")[0]
    time.sleep(0.02)
    lora.save(random_artifact(pack), folder, folder / "elsewhere")
    folder_paths.filename_list_cache.clear()
    assert node.fingerprint_inputs("newest") != seen
    assert first.stem not in str(seen)
    [found] = node.execute("newest").result
    assert (found.name, found.placeholder) == (second.stem, "<person>")
    assert torch.equal(found.stages, random_identity(pack, 1).stages)
    assert torch.equal(node.execute(first.name).result[0].stages, random_identity(pack).stages)
    narrow = random_identity(pack).stages[..., :128]
    tiny = core.save(random_identity(pack, architecture="magicapture-tiny", stages=narrow), folder)[0]
    with refused("me_3 was trained for magicapture-tiny, not for SD1.5"):
        node.execute(tiny.name)
    wrong = lora.save(random_artifact(pack), folder)[0]
    with refused(f"{wrong.name}: no identity made by MagiCapture"):
        node.execute(wrong.name)
