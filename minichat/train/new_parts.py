"""What a configuration says of a part that is trained from nothing: its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minichat.errors import SettingsError
from minichat.train.typed import need


@dataclass(frozen=True)
class NewVision:
    """A vision encoder: a ViT as EVA's, smaller."""

    image_size: int = 96
    """Pixels of a picture's side."""
    patch_size: int = 8
    """Pixels of a patch's side."""
    width: int = 192
    """Of a patch's vector."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of each; they share the width."""
    contrast: float = 0.1
    """Share of the contrast of pictures and captions in the loss, beside what each patch must tell."""

    def __post_init__(self) -> None:
        check_sizes("vision", self, ("image_size", "patch_size", "width", "layers", "heads"), "contrast")
        divides("vision.image_size", self.image_size, "vision.patch_size", self.patch_size)


@dataclass(frozen=True)
class NewLanguage:
    """A language model: a LLaMA, smaller, and its tokenizer."""

    start: str | None = None
    """A folder that this stage wrote, to go on from; then the tokenizer and all sizes below are that folder's."""
    template: str = "minigpt-v2"
    """The prompt template, whose delimiters are among what the tokenizer is trained on."""
    vocabulary: int = 1024
    """Pieces of the tokenizer."""
    corpus: Literal["templates", "people"] = "templates"
    """Whose dialogues the tokenizer is trained on: those of templates, or in people's words."""
    context: int = 1024
    """Tokens that it can read."""
    width: int = 256
    """Of a token's vector."""
    feed_forward: int = 688
    """Of the feed-forward parts."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of each; they share the width."""
    noise: float = 0.3
    """Of what stands for a picture, over the size of a word's vector: image tokens will not be exact either."""

    def __post_init__(self) -> None:
        check_sizes("language", self, ("vocabulary", "context", "width", "feed_forward", "layers", "heads"), "noise")


def check_sizes(section: str, sizes: NewVision | NewLanguage, counts: Sequence[str], share: str) -> None:
    """Raise `SettingsError` for a count below 1, a share below 0, and heads that cannot share the width."""
    for name in counts:
        need(getattr(sizes, name) > 0, f"{section}.{name}", getattr(sizes, name), "at least 1")
    need(getattr(sizes, share) >= 0, f"{section}.{share}", getattr(sizes, share), "0 or more")
    divides(f"{section}.width", sizes.width, f"{section}.heads", sizes.heads)


def divides(name: str, whole: int, part_name: str, part: int) -> None:
    """Raise `SettingsError` unless `part` divides `whole`."""
    if whole % part:
        raise SettingsError(f"{name} is {whole}, which {part_name} ({part}) does not divide: make it a multiple.")
