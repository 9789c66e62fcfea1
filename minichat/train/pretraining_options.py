"""What a Q-Former's pre-training is told: which objectives, and what a new Q-Former begins with."""

from __future__ import annotations

from dataclasses import dataclass

from minichat.errors import SettingsError
from minichat.train.typed import need

OBJECTIVES = ("itc", "itm", "itg")


@dataclass(frozen=True)
class NewQFormer:
    """A Q-Former that is made rather than read: its sizes, and the weights that it begins with."""

    vision: str
    """Whose pictures it reads, frozen: EVA's original file, or the name or folder of a model or of a stage 1."""
    bert: str | None = None
    """BERT's folder or hub id: its words, vocabulary and sizes are the Q-Former's. None: all is random."""
    tokenizer: str | None = None
    """A folder with a `vocab.txt` (`minichat data vocabulary` makes one), where there is no `bert`."""
    layers: int | None = None
    """Transformer layers; none: 12."""
    width: int | None = None
    """Of the hidden states; none: 768. The feed-forward parts are four times as wide."""
    heads: int | None = None
    """Attention heads; none: one for 64 of the width."""
    queries: int = 32
    """Learned queries: an LLM will see as many image tokens."""
    cross_attention_frequency: int = 2
    """In each so-many-th layer the queries read the picture."""
    contrast_width: int = 256
    """In which pictures and texts are compared."""
    dropout: float = 0.1
    """Of hidden states and attention, in training."""
    temperature: float = 0.07
    """Of the contrast, before it is learnt."""
    image_size: int | None = None
    """The pictures' side in pixels; none: the vision encoder's. Its position embeddings are interpolated to another."""
    vision_heads: int | None = None
    """Attention heads of an EVA file whose width is not the published one."""

    def __post_init__(self) -> None:
        where = "pretraining.new"
        need(bool(self.vision), f"{where}.vision", self.vision, "a file or a folder")
        for name in ("layers", "width", "heads", "image_size", "vision_heads"):
            value = getattr(self, name)
            need(value is None or value > 0, f"{where}.{name}", value, "at least 1")
        for name in ("queries", "cross_attention_frequency", "contrast_width"):
            need(getattr(self, name) > 0, f"{where}.{name}", getattr(self, name), "at least 1")
        need(0 <= self.dropout < 1, f"{where}.dropout", self.dropout, "from 0 to below 1")
        need(0.001 <= self.temperature <= 0.5, f"{where}.temperature", self.temperature, "from 0.001 to 0.5")
        given = [name for name in ("tokenizer", "layers", "width", "heads") if getattr(self, name) is not None]
        if self.bert is not None and given:
            raise SettingsError(f"{where} names bert, which has its own {given[0]}: drop one of the two.")
        if self.bert is None and self.tokenizer is None:
            raise SettingsError(
                f"{where} has no word pieces: name bert, or as tokenizer a folder with a vocab.txt "
                "(minichat data vocabulary makes one of your texts)."
            )
        if self.bert is None and self.sizes["hidden_size"] % self.sizes["num_attention_heads"]:
            raise SettingsError(
                f"{where}.heads is {self.sizes['num_attention_heads']}, which does not divide the width "
                f"{self.sizes['hidden_size']}."
            )

    @property
    def sizes(self) -> dict[str, int]:
        """Of a Q-Former without BERT, by the names of its configuration."""
        width = self.width or 768
        return {
            "num_hidden_layers": self.layers or 12,
            "hidden_size": width,
            "num_attention_heads": self.heads or max(1, width // 64),
            "intermediate_size": 4 * width,
        }


@dataclass(frozen=True)
class PretrainingOptions:
    """BLIP-2's first stage. Without `new` it goes on with the stage-1 folder that `model.name` names."""

    new: NewQFormer | None = None
    """A Q-Former to begin with."""
    objectives: tuple[str, ...] = OBJECTIVES
    """Some of image–text contrast (itc), image–text matching (itm) and image-grounded text generation (itg)."""
    label_smoothing: float = 0.1
    """Of contrast and generation."""

    def __post_init__(self) -> None:
        known = bool(self.objectives) and set(self.objectives) <= set(OBJECTIVES)
        need(known, "pretraining.objectives", list(self.objectives), f"some of {', '.join(OBJECTIVES)}")
        need(0 <= self.label_smoothing < 1, "pretraining.label_smoothing", self.label_smoothing, "from 0 to below 1")
