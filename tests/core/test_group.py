"""Several people in one pass: whose region, whose text, whose LoRA, and what is left of the plain sampler."""

import dataclasses
from typing import Any

import pytest
import torch

from magicapture_core import sampler
from magicapture_core.backbone import tiny
from magicapture_core.group.attention import Branch, Regions, acting, delta, shares
from magicapture_core.group.people import Person, overlaps
from magicapture_core.group.sampler import generate_group
from magicapture_core.sefi.identity import SefiIdentity
from magicapture_core.types import LoraLayer, MagiCaptureError
from tests.small import random_artifact, same, weights

SIZE = (64, 96)


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def artifact(backbone):
    return random_artifact(backbone)


@pytest.fixture(scope="module")
def identity(backbone):
    stages = torch.randn(5, 2, backbone.prompt_dim, generator=torch.Generator().manual_seed(1)) * 0.1
    return SefiIdentity(
        name="ada",
        architecture=backbone.architecture,
        placeholder="<person>",
        initializer="person",
        stages=stages,
        template="a photo of the face of {person}",
    )


def halves(size=SIZE):
    """Left and right, [2,1,H,W]."""
    masks = torch.zeros(2, 1, *size)
    masks[0, ..., : size[1] // 2] = 1
    masks[1, ..., size[1] // 2 :] = 1
    return masks


# -- the layer ---------------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    """A transformer of one block, its names as both UNets have them."""

    def __init__(self):
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = torch.nn.ModuleList([BasicTransformerBlock(32, 2, 16, cross_attention_dim=24)])
        self.requires_grad_(False)

    @property
    def attn(self) -> Any:
        return self.transformer_blocks[0].attn2

    @property
    def linears(self) -> list[Any]:
        return [self.attn.to_q, self.attn.to_k, self.attn.to_v, self.attn.to_out[0]]

    def forward(self, images, context):
        """images [B,32,h,w] -> what cross-attention alone gives, [B,32,h,w]."""
        return self.attn(images.flatten(2).mT, context).mT.unflatten(2, images.shape[2:])


@pytest.fixture
def block():
    return Block()


def context(seed, length=7):
    return torch.randn(2, length, 24, generator=torch.Generator().manual_seed(seed))


IMAGES = torch.randn(2, 32, 5, 7, generator=torch.Generator().manual_seed(9))


def branch(text, layers=None):
    return Branch(keys=text, values=text, layers=layers or {})


def in_regions(block, *people):
    """`acting` for pairs of a mask and a branch."""
    masks, branches = zip(*people, strict=True)
    return acting(block, Regions(masks), branches)


def random_lora(layer, seed):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(3, layer.in_features, generator=generator)
    return LoraLayer(down=down, up=torch.randn(layer.out_features, 3, generator=generator), alpha=2.0)


def cross_layers(block, seed):
    return {layer: random_lora(layer, seed + i) for i, layer in enumerate(block.linears)}


def left(columns):
    mask = torch.zeros(1, 5, 7)
    mask[..., :columns] = 1
    return mask


def test_outside_of_all_regions_there_is_the_text_alone_and_inside_the_person_alone(block):
    plain, theirs = block(IMAGES, context(0)), block(IMAGES, context(1, 11))
    with in_regions(block, (left(3), branch(context(1, 11)))):
        mixed = block(IMAGES, context(0))
    assert torch.equal(mixed[..., 3:], plain[..., 3:])
    torch.testing.assert_close(mixed[..., :3], theirs[..., :3])


def test_a_persons_lora_is_that_of_the_whole_layer_inside_their_region(block):
    layers = cross_layers(block, 20)
    other = Block()
    with torch.no_grad():
        for change, layer in zip(layers.values(), other.linears, strict=True):
            layer.weight += change.up @ change.down * (2.0 / 3)
    with in_regions(block, (left(4), branch(context(1), layers))):
        mixed = block(IMAGES, context(0))
    torch.testing.assert_close(mixed[..., :4], other(IMAGES, context(1))[..., :4], atol=1e-4, rtol=1e-4)
    assert torch.equal(mixed[..., 4:], block(IMAGES, context(0))[..., 4:])


def test_what_changes_one_person_changes_nothing_in_the_region_of_another(block):
    def output(text):
        with in_regions(block, (left(3), branch(context(1))), (1 - left(3), branch(text))):
            return block(IMAGES, context(0))

    one, other = output(context(2)), output(context(3))
    assert torch.equal(one[..., :3], other[..., :3])
    assert not torch.allclose(one[..., 3:], other[..., 3:], atol=1e-2)


def test_where_regions_overlap_they_share_and_their_order_says_nothing(block):
    masks = [left(5), left(7) - left(2), left(4)]
    people = [(mask, branch(context(seed))) for seed, mask in enumerate(masks, 1)]
    outputs = []
    for order in ((0, 1, 2), (2, 0, 1)):
        with in_regions(block, *(people[i] for i in order)):
            outputs.append(block(IMAGES, context(0)))
    torch.testing.assert_close(*outputs)
    each = [block(IMAGES, context(i)) for i in (1, 2, 3)]
    torch.testing.assert_close(outputs[0][..., 3], torch.stack(each)[..., 3].mean(0))  # all three are there
    assert shares(torch.stack([left(5), left(7)])).sum(0).max() == 1


def test_the_grid_is_the_layers_own_and_a_cell_is_shared_by_area(block):
    mask = torch.zeros(1, 10, 14)
    mask[..., :5] = 1  # two and a half columns of seven
    with in_regions(block, (mask, branch(context(1)))):
        mixed = block(IMAGES, context(0))
    plain, theirs = block(IMAGES, context(0)), block(IMAGES, context(1))
    torch.testing.assert_close(mixed[..., 2], (plain[..., 2] + theirs[..., 2]) / 2)
    assert torch.equal(mixed[..., 3:], plain[..., 3:])


def test_keys_and_values_may_see_texts_of_their_own(block):
    with in_regions(block, (left(7), Branch(keys=context(1), values=context(2), layers={}))):
        mixed = block(IMAGES, context(0))
    attn = block.attn
    query, key, value = attn.to_q(IMAGES.flatten(2).mT), attn.to_k(context(1)), attn.to_v(context(2))
    heads = zip(*(projected.split(16, -1) for projected in (query, key, value)), strict=True)
    by_hand = [(q @ k.mT / 16**0.5).softmax(-1) @ v for q, k, v in heads]
    torch.testing.assert_close(mixed.flatten(2).mT, attn.to_out[0](torch.cat(by_hand, -1)))


def test_a_lora_on_self_attention_acts_at_the_cells_of_its_region(block):
    layer: Any = block.get_submodule("transformer_blocks.0.attn1.to_v")
    change = random_lora(layer, 5)
    states = IMAGES.flatten(2).mT
    with in_regions(block, (left(3), branch(context(1), {layer: change}))):
        block(IMAGES, context(0))  # which tells the grid
        values = layer(states)
    expected = layer(states) + delta(change, states) * left(3).flatten()[:, None]
    torch.testing.assert_close(values, expected)


def test_a_lora_that_no_region_can_confine_is_refused(block):
    outside = torch.nn.Linear(4, 4)
    person = (left(3), branch(context(1), {outside: random_lora(outside, 0)}))
    with pytest.raises(MagiCaptureError, match="no region can confine"), in_regions(block, person):
        pass


@pytest.mark.parametrize("changed", [lambda states: states[:, ::2], lambda states: states.repeat(2, 1, 1)])
def test_cells_that_a_patch_took_away_or_repeated_are_told(block, changed):
    """What token merging and packs of regional prompts do before attention."""
    layer: Any = block.get_submodule("transformer_blocks.0.attn1.to_v")
    states = changed(IMAGES.flatten(2).mT)
    with in_regions(block, (left(3), branch(context(1), {layer: random_lora(layer, 5)}))):
        block(IMAGES, context(0))
        with pytest.raises(MagiCaptureError, match="HyperTile, ToMe"):
            layer(states)
        with pytest.raises(MagiCaptureError, match="HyperTile, ToMe"):
            block.attn(states, context(0).repeat(len(states) // 2, 1, 1))


def test_every_grid_of_the_unet_is_found_once_and_shares_out_all_of_it():
    """An SD1.5 of 512 and of 768x512 pixels: 64, 32, 16, 8 cells."""
    regions = Regions([*halves((512, 768)), torch.rand(1, 512, 768)])
    for height, width in ((64, 96), (32, 48), (16, 24), (8, 12), (13, 7)):
        grid = regions.grid(height, width, torch.device("cpu"))
        assert regions.grid(height, width, torch.device("cpu")) is grid
        total = grid.rest[:, 0].clone()
        for place in grid.places:
            total.index_add_(0, place.cells, place.share[:, 0])
        torch.testing.assert_close(total, torch.ones(height * width))
        columns = grid.places[0].cells % width
        assert int(columns.max()) == (width - 1) // 2  # the left half ends there, at a shared column where odd


def test_the_model_is_its_own_again_even_after_an_error(block):
    layers = cross_layers(block, 20)
    before = block(IMAGES, context(0))
    with pytest.raises(ZeroDivisionError), in_regions(block, (left(3), branch(context(1), layers))):
        raise ZeroDivisionError
    assert torch.equal(block(IMAGES, context(0)), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())


# -- the picture -------------------------------------------------------------------------------------------------------


def picture(backbone, people, prompt="in front of a plain blue background", **options):
    return generate_group(backbone, people, prompt, **{"num_steps": 3, "size": SIZE, **options})


def test_one_person_everywhere_is_what_the_plain_sampler_makes(backbone, artifact, identity):
    options = {"num_steps": 4, "size": SIZE, "negative_prompt": "a hat", "num_images": 2}
    for made in (artifact, identity):
        person = Person(made=made, mask=torch.ones(1, *SIZE), prompt="a portrait of {person} wearing glasses")
        text = person.text("in front of a plain blue background")
        assert text.endswith(" wearing glasses, in front of a plain blue background")
        plain = sampler.generate(backbone, person.artifact, text, identities=person.identities, **options)
        torch.testing.assert_close(picture(backbone, [person], **options), plain, atol=2e-4, rtol=0)


def test_nobody_strong_enough_to_act_leaves_the_picture_of_the_text(backbone, artifact):
    person = Person(made=artifact, mask=torch.ones(1, *SIZE), strength=0.0)
    plain = sampler.generate(backbone, None, "a photo", num_steps=3, size=SIZE)
    assert torch.equal(picture(backbone, [person], "a photo"), plain)


def test_the_first_steps_are_the_layouts_alone_and_the_others_the_peoples(backbone, artifact):
    people = [Person(made=artifact, mask=mask, prompt="a {person}") for mask in halves()]
    plain = sampler.generate(backbone, None, "a photo of two people", num_steps=4, size=SIZE)
    begun = {delay: picture(backbone, people, layout="a photo of two people", delay=delay, num_steps=4)
             for delay in (0.0, 0.5, 1.0)}  # fmt: skip
    assert torch.equal(begun[1.0], plain)
    assert torch.equal(begun[0.0], picture(backbone, people, num_steps=4))
    assert not torch.equal(begun[0.5], begun[0.0])
    assert (begun[0.5] - plain).abs().mean() < (begun[0.0] - plain).abs().mean()
    with pytest.raises(MagiCaptureError, match="names nobody there"):
        picture(backbone, people, layout="two people and {person}", delay=0.5)


def test_a_step_is_one_pass_however_many_there_are(backbone, artifact, identity):
    for number in (1, 2, 3):
        calls = []
        people = [Person(made=(artifact, identity)[i % 2], mask=halves()[i % 2]) for i in range(number)]
        with backbone.unet.register_forward_hook(lambda *_, calls=calls: calls.append(1)):
            picture(backbone, people)
        assert len(calls) == 3


def test_the_order_in_which_people_are_named_says_nothing(backbone, artifact, identity):
    overlapping = (halves()[0], torch.ones(1, *SIZE))
    people = [Person(made=made, mask=mask) for made, mask in zip((artifact, identity), overlapping, strict=True)]
    torch.testing.assert_close(picture(backbone, people), picture(backbone, people[::-1]), atol=2e-4, rtol=0)


def test_two_files_may_have_the_same_word(backbone, artifact):
    other = random_artifact(backbone, seed=8)
    one, two = (Person(made=made, mask=mask) for made, mask in zip((artifact, other), halves(), strict=True))
    swapped = [dataclasses.replace(one, mask=two.mask), dataclasses.replace(two, mask=one.mask)]
    assert one.name == two.name
    assert not torch.allclose(picture(backbone, [one, two]), picture(backbone, swapped), atol=0.02)


def test_the_backbone_is_as_it_was(backbone, artifact, identity):
    modules = (backbone.unet, backbone.text_encoder)
    before = weights(*modules)
    picture(backbone, [Person(made=m, mask=mask) for m, mask in zip((artifact, identity), halves(), strict=True)])
    assert same(weights(*modules), before)


def test_an_overlap_is_told(identity):
    whole, right = torch.ones(1, *SIZE), halves()[1]
    people = [Person(made=identity, mask=mask) for mask in (halves()[0], whole, right)]
    assert overlaps(people) == [
        "person 1 and person 2 share 50.0% of the picture, where they mix",
        "person 2 and person 3 share 50.0% of the picture, where they mix",
    ]


def test_names_and_texts(artifact, identity):
    mask = torch.ones(1, *SIZE)
    assert Person(made=identity, mask=mask).text("") == "a photo of <person>"
    assert Person(made=artifact, mask=mask).text(" outdoors ") == "a photo of <subject> person, outdoors"
    styled = Person(made=artifact, mask=mask, prompt="{subject} man in the {style} style")
    assert styled.text("") == "<subject> man in the <style> style"
    with pytest.raises(MagiCaptureError, match="only a style"):
        _ = Person(made=dataclasses.replace(artifact, tokens=artifact.tokens[1:]), mask=mask).name


@pytest.mark.parametrize(
    ("masks", "named"),
    [
        ([], "nobody"),
        ([torch.ones(1, 64, 96), torch.ones(1, 64, 64)], "different sizes, 64x64 and 96x64"),
        ([torch.ones(1, 64, 96), torch.zeros(1, 64, 96)], "person 2 is empty"),
    ],
)
def test_bad_regions_are_one_line(backbone, identity, masks, named):
    with pytest.raises(MagiCaptureError, match=named):
        picture(backbone, [Person(made=identity, mask=mask) for mask in masks])


@pytest.mark.parametrize("prompt", ["{person} on a beach", "{subject} on a beach"])
def test_of_the_whole_picture_nobody_can_be_named(backbone, identity, prompt):
    person = Person(made=identity, mask=torch.ones(1, *SIZE))
    for prompts in ({"prompt": prompt}, {"negative_prompt": prompt}):
        with pytest.raises(MagiCaptureError, match="prompt"):
            picture(backbone, [person], **prompts)


def test_a_lora_of_another_model_is_refused_by_name(backbone, artifact):
    other = dataclasses.replace(artifact, architecture="stable-diffusion-v1")
    with pytest.raises(MagiCaptureError, match="random was trained for stable-diffusion-v1"):
        picture(backbone, [Person(made=other, mask=torch.ones(1, *SIZE))])
