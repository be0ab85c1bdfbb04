"""Stage 2, the text encoder: what a caption says about each subject has to be found at its words.

SD's text encoder came trained, from CLIP. Without such a start the UNet had to learn words and pictures at once: after
3,000 steps it drew portraits and hardly obeyed a colour. The reader looks as the UNet will, by cross-attention, and at
words alone, for an encoder that keeps everything in the padding would leave a learned word nothing to look with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicapture_core import backbone as backbones
from magicapture_core.backbone import TINY_WEIGHTS
from magicapture_core.tokens import Vocabulary

from .. import world
from ..captions import describe
from ..labels import ATTRIBUTES, STYLE_WORDS, UNSEEN, attribute_labels, style_labels
from ..nets import NUM_TRAITS, save_weights
from ..parameters import Identity
from ..pictures import MOST_SUBJECTS
from ..world import CANVASES, Scene
from . import stage
from .fresh import make_text_encoder

STAGE = stage.Stage(name="text", num_steps=2_500, learning_rate=1e-3, average=0.997)
SHARES = (0.4, 0.2, 0.2, 0.2)  # of the canvases
BATCH = 64
TRAIT_WEIGHT = 5.0
CHOICES = {name: len(words) for name, words in STYLE_WORDS.items()} | dict.fromkeys((*ATTRIBUTES, "cat"), 2)


class Reader(nn.Module):
    """A text encoder, and one cross-attention query for each fact about each place from left to right."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = make_text_encoder()
        width = self.text_encoder.config.hidden_size
        self.queries = nn.Parameter(torch.randn(MOST_SUBJECTS, len(CHOICES) + 1, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.facts = nn.ModuleDict({name: nn.Linear(width, choices) for name, choices in CHOICES.items()})
        self.traits = nn.Linear(width, NUM_TRAITS)

    def forward(self, input_ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """[B,T] -> scores [B,places,choices] of every fact, identity parameters [B,places,26]."""
        state = self.text_encoder(input_ids).last_hidden_state
        config = self.text_encoder.config
        no_word = (input_ids == config.eos_token_id) | (input_ids == config.bos_token_id)
        queries = self.queries.flatten(0, 1).expand(len(state), -1, -1)
        read, _ = self.attention(queries, state, state, key_padding_mask=no_word, need_weights=False)
        places = read.unflatten(1, self.queries.shape[:2])
        scores = {name: self.facts[name](places[:, :, column]) for column, name in enumerate(CHOICES)}
        return scores, self.traits(places[:, :, -1])


def draw_caption(generator: np.random.Generator) -> tuple[str, Scene]:
    """Of a picture that is never painted."""
    scene = world.draw_scene(generator, *CANVASES[generator.choice(len(CANVASES), p=SHARES)])
    return describe(scene.setting, scene.subjects, world.positions(scene), generator), scene


def targets(scene: Scene) -> tuple[Tensor, Tensor]:
    """facts [places,facts], UNSEEN where there is none; traits [places,26], NaN where nobody stands."""
    facts = torch.full((MOST_SUBJECTS, len(CHOICES)), UNSEEN)
    traits = torch.full((MOST_SUBJECTS, NUM_TRAITS), torch.nan)
    for place, subject in enumerate(scene.subjects):
        is_person = isinstance(subject.identity, Identity)
        facts[place] = torch.tensor([*style_labels(subject, scene.setting), *attribute_labels(subject), not is_person])
        if is_person:
            traits[place] = torch.from_numpy(subject.identity.vector())
    return facts, traits


def draw(vocabulary: Vocabulary, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids [B,T], facts, traits."""
    captions, scenes = zip(*(draw_caption(generator) for _ in range(count)), strict=True)
    facts, traits = zip(*map(targets, scenes), strict=True)
    return vocabulary.encode(captions), torch.stack(facts), torch.stack(traits)


def loss(model: nn.Module, input_ids: Tensor, facts: Tensor, traits: Tensor) -> Tensor:
    """Much of it stays: captions leave things out."""
    scores, read = model(input_ids)
    known = ~traits.isnan()
    total = TRAIT_WEIGHT * F.mse_loss(read[known], traits[known])
    for column, name in enumerate(CHOICES):
        total = total + F.cross_entropy(
            scores[name].flatten(0, 1), facts[:, :, column].flatten(), ignore_index=UNSEEN
        ) / len(CHOICES)
    return total


def pretrain() -> None:
    vocabulary = Vocabulary(backbones.load_tokenizer(backbones.TINY_FOLDER / "tokenizer"), {})
    held_out = draw(vocabulary, 512, np.random.default_rng(0))

    @torch.no_grad()
    def score(model: Any) -> dict[str, float]:
        scores, _ = model(held_out[0])
        right = {}
        for column, name in enumerate(CHOICES):
            wanted = held_out[1][:, :, column]
            shown = wanted != UNSEEN
            right[name] = float((scores[name].argmax(-1) == wanted)[shown].float().mean())
        return {name: right[name] for name in ("hair_color", "clothes_color", "background")}

    torch.manual_seed(STAGE.seed)
    trained = stage.run(STAGE, Reader(), lambda generator: draw(vocabulary, BATCH, generator), loss, score)
    save_weights(trained.text_encoder, TINY_WEIGHTS["text_encoder"])
