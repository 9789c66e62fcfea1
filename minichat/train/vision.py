"""A vision encoder from nothing: contrast of pictures and captions, as CLIP and EVA-CLIP learn, and what patches show.

With the few pictures of a laptop, contrast alone forgets place and number; each patch must tell them, too (`sight`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import Blip2VisionConfig, Blip2VisionModel

from minichat import images
from minichat.data.drawn import DrawnPicture
from minichat.data.rows import Row
from minichat.disk import write_json
from minichat.errors import DataError, SettingsError
from minichat.model.gathering import processes
from minichat.train.config import Config
from minichat.train.data import division
from minichat.train.files import TRAINING
from minichat.train.new_parts import NewVision
from minichat.train.sight import SightHeads, labels
from minichat.train.stage import OF_A_MODEL, Batch, Stage
from minichat.train.vocabulary import train_tokenizer
from minichat.train.waves import waves

if TYPE_CHECKING:
    from minichat.data.example import Example

_PIECES = 1024  # of the captions' tokenizer
_TEXT_LAYERS = 2
_LONGEST = 128  # tokens of a caption
_TEMPERATURE = 0.07


class Sight(nn.Module):
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
        self.heads = SightHeads(width)
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

    def contrast(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The loss of finding each picture's caption among the others' and the other way round, summed over both."""
        known = mask.any(-1)  # pictures of no drawn shapes have no caption
        if not known.any():
            return states.new_zeros((), dtype=torch.float32)
        told = self.words(ids[known]) + self.places.weight[: ids.shape[1]]
        read = self.text(told, src_key_padding_mask=~mask[known])[:, 0]
        likeness = normalize(self.to_contrast(states[known, 0]).float(), dim=-1) @ normalize(read.float(), dim=-1).T
        own = torch.arange(len(likeness), device=likeness.device)
        likeness = likeness / _TEMPERATURE
        loss: Tensor = cross_entropy(likeness, own, reduction="sum") + cross_entropy(likeness.T, own, reduction="sum")
        return loss / 2


class Vision(Stage):
    """What a ViT sees in drawn pictures."""

    trainable: ClassVar[tuple[str, ...]] = ("model",)
    lighter: ClassVar[tuple[str, ...]] = ("run.batch_size",)
    unused: ClassVar[tuple[str, ...]] = (*OF_A_MODEL, "data.max_tokens")

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises `SettingsError` for sizes that cannot be, and for a contrast in parts."""
        self._sizes = config.vision or NewVision()
        if config.trainable not in ((), self.trainable):
            raise SettingsError(f"trainable is {list(config.trainable)}: the stage vision trains its whole model.")
        if self._sizes.contrast and division(config, processes()) != (1, config.run.batch_size):
            raise SettingsError(
                "vision.contrast compares all captions of a step with each other, so they go through at once: leave "
                "run.device_batch_size out and use one process, or set vision.contrast to 0."
            )
        self._tokenizer = train_tokenizer(_PIECES, "minigpt-v2", config.seed)
        torch.manual_seed(config.seed)
        self.model: Any = Sight(self._sizes).to(device)
        self.longest = _LONGEST

    def render(self, example: Example) -> Row:
        """A picture and its caption, the last reply; none for a picture that is not of the drawn world."""
        picture = example.pictures[0] if example.pictures else None
        if not isinstance(picture, DrawnPicture):
            raise DataError(f"{example.where}: the stage vision learns from what is drawn alone: use `form: drawn`.")
        caption = "" if picture.scene is None else example.replies[-1]
        ids = np.array(self._tokenizer.encode(caption)[:_LONGEST], np.int32)
        return Row(ids, ids, (picture,), example.where)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows → `pixel_values` (B, 3, S, S), captions `input_ids`, `attention_mask` (B, T), and `labels`."""
        longest = max(1, *(len(row.ids) for row in rows))
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], mask[number, : len(row.ids)] = row.ids, 1
        pictures = [row.pictures[0] for row in rows]
        side = self._sizes.image_size
        truth = [labels(p.scene, side // self._sizes.patch_size) for p in pictures if isinstance(p, DrawnPicture)]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "pixel_values": images.to_pixels([picture.open() for picture in pictures], side),
            **{name: torch.from_numpy(np.stack([told[name] for told in truth])) for name in truth[0]},
        }

    def count(self, batch: Batch) -> int:
        """Pictures."""
        return len(batch["pixel_values"])

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the pictures' losses."""
        states = self.model.states(batch["pixel_values"])
        loss: Tensor = self.model.heads(states, batch)
        if self._sizes.contrast:
            told = self.model.contrast(states, batch["input_ids"], batch["attention_mask"].bool())
            loss = loss + self._sizes.contrast * told
        return loss

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """The ViT in BLIP-2's layout, which the stage `pretraining` begins with; the heads are left out."""
        from minichat.weights.writing import Entry, write_tensors

        model = self.model.vision_model.to(torch.bfloat16)
        held = {f"vision_model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_tensors(out, [Entry(name, t.nbytes, lambda t=t: t) for name, t in held.items()])  # type: ignore[misc]
        write_json(out / TRAINING, dict(facts))
        write_json(out / "config.json", {"model_type": "blip-2", "vision_config": model.config.to_diff_dict()})


def _place_patches(embeddings: Any, patches: int) -> None:
    """Positions begin as sines and cosines of the patches' places."""
    position = embeddings.position_embedding  # (1, 1 + P, W)
    width = position.shape[-1]
    code = waves(patches, width // 4)  # (patches, width / 2)
    across, down = code[None].expand(patches, -1, -1), code[:, None].expand(-1, patches, -1)
    with torch.no_grad():
        position.zero_()
        position[0, 1:, : 4 * (width // 4)] = 0.3 * torch.cat([across, down], -1).flatten(0, 1)
        embeddings.class_embedding.normal_(0, 0.02)
