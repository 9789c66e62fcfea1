"""The toy's vision: a vision encoder from nothing, and a projection that learns its LLM's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from transformers import Blip2VisionConfig, Blip2VisionModel

import minichat.images as images
from minichat.data.dataset import Row
from minichat.errors import DataError, SettingsError
from minichat.fileio import write_json
from minichat.model.loss import processes
from minichat.prompt.render import IGNORED
from minichat.toy.captions import LEVELS, NONE, OUTSIDE, PLACES, TOKENS, WORDS, description, outside_description
from minichat.toy.dataset import SyntheticPicture
from minichat.toy.train_lm import (
    has_words,
    in_numbers,
    sinusoidal_positions,
    summed,
    synthetic,
    train_tokenizer,
    word_vectors,
)
from minichat.toy.world import BACKGROUNDS, COLOURS, MAX_THINGS, NUMBERS, SHAPES, SIZES, Scene
from minichat.train.checkpoint import TRAINING
from minichat.train.config import Config, NewVision
from minichat.train.data import division
from minichat.train.optimizer import trained
from minichat.train.setup import open_bot, write_result
from minichat.train.stages import OF_A_MODEL, Batch, Stage

if TYPE_CHECKING:
    from minichat.data.example import Example


# --- What each patch of a synthetic picture must tell of the thing that it shows, and the heads that read it there.
#
# A caption names a dozen facts about thousands of pixels, and a small ViT needs millions of captions to find out which
# pixels they speak of. The synthetic world knows where everything is, so each patch on a thing must name its shape,
# colour and size, and where its centre is. The heads are linear and are thrown away: what they can read, a Q-Former can
# read.


_NOTHING = len(SHAPES)  # the shape of a patch that shows no thing
_OUTSIDE = len(BACKGROUNDS)  # the background of a picture that is not of the synthetic world
_MARGIN = 0.01  # of the side: a patch this near to a thing's circle is on it
_NOTHING_WEIGHS = 0.1  # most patches show nothing, which would be the answer everywhere for a long time

_OF_A_PATCH = {"shape": len(SHAPES) + 1, "colour": len(COLOURS), "size": len(SIZES), "x": LEVELS, "y": LEVELS}
_WEIGHTS = {
    "shape": 1.0,
    "colour": 1.0,
    "size": 0.5,
    "x": 0.5,
    "y": 0.5,
    "background": 0.5,
    "colours": 3.0,
    "count": 0.5,
}
_OF_A_PICTURE = {"background": len(BACKGROUNDS) + 1, "colours": len(COLOURS), "count": MAX_THINGS + 1}

Labels = dict[str, NDArray[np.int64]]


def labels(scene: Scene | None, patches: int) -> Labels:
    """What is true of a picture, P = `patches`² patches in raster order.

    `shape`, `colour`, `size`, `x`, `y`: (P,) indices, the last two of levels; −100 where there is nothing to tell.
    `background`, `count`: (); `colours`: (11,) zeros and ones. Without a scene: nothing of patches and colours.
    """
    targets: Labels = {name: np.full(patches * patches, IGNORED) for name in _OF_A_PATCH}
    if scene is None:
        colours = np.full(len(COLOURS), IGNORED)
        return targets | {"background": np.array(_OUTSIDE), "colours": colours, "count": np.array(0)}
    targets["shape"][:] = _NOTHING
    centres = (np.arange(patches) + 0.5) / patches
    x, y = np.tile(centres, patches), np.repeat(centres, patches)
    for thing in scene.things:
        inside = (x - thing.x) ** 2 + (y - thing.y) ** 2 < (thing.radius + _MARGIN) ** 2
        targets["shape"][inside] = SHAPES.index(thing.shape)
        targets["colour"][inside] = COLOURS.index(thing.colour)
        targets["size"][inside] = SIZES.index(thing.size)
        targets["x"][inside], targets["y"][inside] = int(thing.x * LEVELS), int(thing.y * LEVELS)
    return targets | {
        "background": np.array(BACKGROUNDS.index(scene.background.kind)),
        "colours": np.array([colour in scene.background.colours for colour in COLOURS], np.int64),
        "count": np.array(len(scene.things)),
    }


class AuxiliaryHeads(nn.Module):
    """Linear readings of a ViT's patches, and of its class token for the picture as a whole."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(_OF_A_PATCH.values()))
        self.picture = nn.Linear(width, sum(_OF_A_PICTURE.values()))

    def forward(self, states: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """States (B, 1 + P, W), class token first, and `labels` as a batch → the sum of the pictures' losses.

        A picture's loss of shape, say, is the mean over its patches that have one to tell.
        """
        patches = self.patch(states[:, 1:]).float().split(list(_OF_A_PATCH.values()), -1)  # (B, P, …)
        whole = self.picture(states[:, 0]).float().split(list(_OF_A_PICTURE.values()), -1)  # (B, …)
        losses = dict(
            zip(_OF_A_PATCH, map(_mean_over_patches, patches, [targets[n] for n in _OF_A_PATCH]), strict=True)
        )
        for name, logits in zip(_OF_A_PICTURE, whole, strict=True):
            if name == "colours":
                known = targets[name] >= 0
                each = binary_cross_entropy_with_logits(logits, targets[name].clamp(min=0).float(), reduction="none")
                losses[name] = (each * known).mean(-1)
            else:
                losses[name] = cross_entropy(logits, targets[name], reduction="none")
        return torch.stack([_WEIGHTS[name] * loss.sum() for name, loss in losses.items()]).sum()


def _mean_over_patches(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, P, C), (B, P) → (B,): the weighted mean of the patches that have something to tell, 0 where none has."""
    each = cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)  # (B, P)
    weight = (targets >= 0).float()
    if logits.shape[-1] == _NOTHING + 1:
        weight = weight.masked_fill(targets == _NOTHING, _NOTHING_WEIGHS)
    return (each * weight).sum(-1) / weight.sum(-1).clamp(min=_NOTHING_WEIGHS)


# --- A vision encoder from nothing: contrast of pictures and captions, as CLIP and EVA-CLIP learn, and what patches
# show.
#
# With the few pictures of a laptop, contrast alone forgets place and number; so auxiliary heads ask them of each patch.


_PIECES = 1024  # of the captions' tokenizer
_TEXT_LAYERS = 2
_LONGEST = 128  # tokens of a caption
_TEMPERATURE = 0.07


class VisionNetwork(nn.Module):
    """A ViT, the heads that its patches are read with, and a small text encoder for the contrast."""

    def __init__(self, sizes: NewVision) -> None:
        super().__init__()
        width = sizes.width
        config = Blip2VisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            initializer_range=0.02,  # the default leaves a new model all but zero
        )
        # Eager attention: at these sizes a step with PyTorch's fused attention took 1.6 times as long on the CPU.
        self.vision_model: Any = Blip2VisionModel._from_config(config, attn_implementation="eager")
        self.vision_model.post_layernorm = nn.Identity()  # the Q-Former's side has the last norm
        _place_patches(self.vision_model.embeddings, sizes.image_size // sizes.patch_size)
        self.norm = nn.LayerNorm(width)
        self.heads = AuxiliaryHeads(width)
        self.words = nn.Embedding(_PIECES, width)
        self.places = nn.Embedding(_LONGEST, width)
        layer = nn.TransformerEncoderLayer(
            width, sizes.heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.text = nn.TransformerEncoder(layer, _TEXT_LAYERS, enable_nested_tensor=False)
        self.to_contrast = nn.Linear(width, width)

    def states(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, 1 + P, W)."""
        states: Tensor = self.norm(self.vision_model(pixel_values=pixels).last_hidden_state)
        return states

    def contrast(self, states: Tensor, ids: Tensor, mask: Tensor, known: Tensor) -> Tensor:
        """The loss of finding each picture's caption among the others' and the other way round, summed over both.

        `known` (K,) are the pictures that have a caption: those of no drawn shapes have none.
        """
        if not len(known):
            return states.new_zeros((), dtype=torch.float32)
        told = self.words(ids[known]) + self.places.weight[: ids.shape[1]]
        read = self.text(told, src_key_padding_mask=~mask[known])[:, 0]
        likeness = normalize(self.to_contrast(states[known, 0]).float(), dim=-1) @ normalize(read.float(), dim=-1).T
        own = torch.arange(len(likeness), device=likeness.device)
        likeness = likeness / _TEMPERATURE
        loss: Tensor = cross_entropy(likeness, own, reduction="sum") + cross_entropy(likeness.T, own, reduction="sum")
        return loss / 2


class Vision(Stage):
    """What a ViT sees in synthetic pictures."""

    trainable: ClassVar[tuple[str, ...]] = ("model",)
    lighter: ClassVar[tuple[str, ...]] = ("run.batch_size",)
    unused: ClassVar[tuple[str, ...]] = (*OF_A_MODEL, "data.max_length")

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises `SettingsError` for sizes that cannot be, and for a contrast in parts."""
        self._sizes = config.vision or NewVision()
        if config.trainable not in ((), self.trainable):
            raise SettingsError(f"trainable is {list(config.trainable)}: the stage vision trains its whole model.")
        if self._sizes.contrastive_weight and division(config, processes()) != (1, config.run.batch_size):
            raise SettingsError(
                "The contrastive loss compares all captions of a step with each other, so they go through at once: "
                "leave run.micro_batch_size out and use one process, or set vision.contrastive_weight to 0."
            )
        self._tokenizer = train_tokenizer(_PIECES, "minigpt-v2", config.seed)
        torch.manual_seed(config.seed)
        self.model: Any = VisionNetwork(self._sizes).to(device)
        self.longest = _LONGEST

    def render(self, example: Example) -> Row:
        """A picture and its caption, the last reply; none for a picture that is not of the synthetic world."""
        picture = example.pictures[0] if example.pictures else None
        if not isinstance(picture, SyntheticPicture):
            raise DataError(
                f"{example.where}: the stage vision learns from synthetic data alone: use `format: synthetic`."
            )
        caption = "" if picture.scene is None else example.replies[-1]
        ids = np.array(self._tokenizer.encode(caption)[:_LONGEST], np.int32)
        return Row(ids, ids, (picture,), example.where)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows → `pixel_values` (B, 3, S, S), captions `input_ids`, `attention_mask` (B, T), and `labels`.

        `captioned` (K,) are the rows that have a caption.
        """
        longest = max(1, *(len(row.ids) for row in rows))
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], mask[number, : len(row.ids)] = row.ids, 1
        pictures = [row.pictures[0] for row in rows]
        side = self._sizes.image_size
        targets = [labels(p.scene, side // self._sizes.patch_size) for p in pictures if isinstance(p, SyntheticPicture)]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "captioned": torch.from_numpy(np.flatnonzero(mask.any(-1))),  # worked out here: a GPU is not waited for
            "pixel_values": images.to_pixels([picture.open() for picture in pictures], side),
            **{name: torch.from_numpy(np.stack([one[name] for one in targets])) for name in targets[0]},
        }

    def count(self, batch: Batch) -> int:
        """Pictures."""
        return len(batch["pixel_values"])

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the pictures' losses."""
        states = self.model.states(batch["pixel_values"])
        loss: Tensor = self.model.heads(states, batch)
        if self._sizes.contrastive_weight:
            mask = batch["attention_mask"].bool()
            told = self.model.contrast(states, batch["input_ids"], mask, batch["captioned"])
            loss = loss + self._sizes.contrastive_weight * told
        return loss

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """The ViT in BLIP-2's layout, which the stage `qformer` begins with; the heads are left out."""
        from minichat.weights.checkpoint_io import Entry, write_tensors

        model = self.model.vision_model.to(torch.bfloat16)
        held = {f"vision_model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_tensors(out, [Entry(name, t.nbytes, lambda t=t: t) for name, t in held.items()])  # type: ignore[misc]
        write_json(out / TRAINING, dict(facts))
        write_json(out / "config.json", {"model_type": "blip-2", "vision_config": model.config.to_diff_dict()})


def _place_patches(embeddings: Any, patches: int) -> None:
    """Positions begin as sines and cosines of the patches' places."""
    position = embeddings.position_embedding  # (1, 1 + P, W)
    width = position.shape[-1]
    code = sinusoidal_positions(patches, width // 4)  # (patches, width / 2)
    across, down = code[None].expand(patches, -1, -1), code[:, None].expand(-1, patches, -1)
    with torch.no_grad():
        position.zero_()
        position[0, 1:, : 4 * (width // 4)] = 0.3 * torch.cat([across, down], -1).flatten(0, 1)
        embeddings.class_embedding.normal_(0, 0.02)


# --- A projection that learns its LLM's words: what stands in each place of a picture is to sum to its description.
#
# The LLaMA of the stage `language` has read descriptions where a picture's tokens will be. Where what is drawn is
# known, Q-Former and projection can be told place by place what to write there, before the replies' loss asks for it
# through the whole LLM. For an LLM that others trained, it is a beginning in its own words (`described.word_vectors`).
# No LLM runs here, its embeddings alone are read.


#: Of the words of a kind, one is true: of a thing's size (or that there is none), its colour, its shape, …
KINDS = (
    (*SIZES, NONE, OUTSIDE),
    COLOURS,
    SHAPES,
    PLACES[:LEVELS],
    PLACES[LEVELS:],
    BACKGROUNDS,
    NUMBERS[1 : MAX_THINGS + 1],
)
_SPREAD = 0.2  # variance that an image token may have around its description, over a word's mean square
_NONE_WEIGHS = 0.1  # most places show nothing, which would be the answer everywhere for a long time
_NUMBER = {word: number for number, word in enumerate(WORDS)}


class WordAlignment(Stage):
    """What each of the 32 places of a synthetic picture should come to mean, in the embeddings of an LLM."""

    trainable: ClassVar[tuple[str, ...]] = ("bridge", "projection")
    unused: ClassVar[tuple[str, ...]] = (
        "model.gradient_checkpointing",
        "data.template",
        "data.max_length",
        "data.max_reply_length",
        "data.max_question_length",
        "data.feature_cache",
    )

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises what loading raises, and `SettingsError` for a model with another number of image tokens."""
        self.bot = open_bot(config.model, config.trainable or self.trainable, device)
        self.model: Any = self.bot.model
        self._processor = self.bot.processor
        if (tokens := self.model.config.num_image_tokens) != TOKENS:
            raise SettingsError(
                f"A picture has {tokens} tokens in the model {config.model.name!r}, but the stage word_alignment has "
                f"words for {TOKENS} places of one: use a model with a Q-Former of so many queries."
            )
        embeddings = self.model.get_input_embeddings().weight.detach().float()
        tokenizer = self._processor.content_tokenizer
        # A LLaMA of the stage language has always read them. Another LLM would count a thing that is told twice twice.
        self._copies = has_words(tokenizer)
        self._words = word_vectors(tokenizer, embeddings)  # (W, H)
        self._apart = torch.cdist(self._words, self._words).square()  # (W, W)
        self._unit = _SPREAD * self._words.square().sum(-1).mean()
        alike = torch.zeros(len(WORDS), len(WORDS), dtype=torch.bool)
        for kind in KINDS:
            of = torch.tensor([_NUMBER[word] for word in kind])
            alike[of[:, None], of] = True
        self._other_kind = ~alike.to(device)
        self.longest = TOKENS

    def render(self, example: Example) -> Row:
        """Its pictures alone."""
        none = np.zeros(1, np.int32)
        return Row(none, none, tuple(example.pictures), example.where)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows → `pixel_values` (I, 3, S, S), `words` (I, 32, 6): numbers of `WORDS`, and a mask of all places."""
        pictures = [synthetic(picture, row.where, "word_alignment") for row in rows for picture in row.pictures]
        if not pictures:
            raise DataError(f"{rows[0].where}: there is no picture to be named.")
        told = [
            outside_description() if p.scene is None else description(p.scene, copies=self._copies) for p in pictures
        ]
        pixels = self._processor.image_processor([p.open() for p in pictures], return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixels,
            "words": in_numbers(told, _NUMBER),
            "attention_mask": torch.ones(len(pictures), TOKENS, dtype=torch.long),
        }

    def count(self, batch: Batch) -> int:
        """Pictures."""
        return len(batch["pixel_values"])

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the pictures' losses.

        Image tokens are taken as a normal distribution around their descriptions' sums. A place's loss is how far it is
        from its own, and for each of its words how likely the others of its kind would be instead, all else as it is.
        """
        tokens = self.model.encode_images(batch["pixel_values"]).float()  # (I, 32, H)
        words = batch["words"]  # (I, 32, 6)
        off = tokens - summed(self._words, words)  # (I, 32, H)
        distance = off.square().sum(-1) / self._unit  # (I, 32)
        likely = (2 * off @ self._words.T).unsqueeze(2) - self._apart[words.clamp(min=0)]  # (I, 32, 6, W)
        logits = (likely / self._unit).masked_fill(self._other_kind[words.clamp(min=0)], -torch.inf)
        named = cross_entropy(logits.flatten(0, 2), words.flatten(), ignore_index=-1, reduction="none")
        weight = torch.where(words[..., 0] == _NUMBER[NONE], _NONE_WEIGHS, 1.0)  # (I, 32)
        loss: Tensor = ((named.view(words.shape).sum(-1) + distance) * weight).sum()
        return loss / TOKENS

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """The model's folder, with what was trained."""
        write_result(out, base, trained(self.model), facts)
