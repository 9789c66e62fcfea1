"""What a training run is told: one YAML file for each stage and model, with `key.sub=value` overrides."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from minichat.data import SeveralCaptions, UnknownKeys
from minichat.device import Dtype, Quantize
from minichat.errors import SettingsError
from minichat.fileio import open_file
from minichat.train.yaml_config import (
    Checked,
    ConfigError,
    Problem,
    build,
    need,
    new_names,
    override,
    read_yaml,
)

# --- What a Q-Former's pre-training is told: which objectives, and what a new Q-Former begins with.


OBJECTIVES = ("itc", "itm", "itg")


@dataclass(frozen=True)
class NewQFormer(Checked):
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
    num_queries: int = 32
    """Learned queries: an LLM will see as many image tokens."""
    cross_attention_frequency: int = 2
    """In each so-many-th layer the queries read the picture."""
    embed_dim: int = 256
    """In which pictures and texts are compared."""
    dropout: float = 0.1
    """Of hidden states and attention, in training."""
    temperature: float = 0.07
    """Of the contrast, before it is learned."""
    image_size: int | None = None
    """The pictures' side in pixels; none: the vision encoder's. Its position embeddings are interpolated to another."""
    vision_heads: int | None = None
    """Attention heads of an EVA file whose width is not the published one."""

    def problems(self) -> Iterator[Problem]:
        yield from need(bool(self.vision), "vision", self.vision, "a file or a folder")
        for name in ("layers", "width", "heads", "image_size", "vision_heads"):
            value = getattr(self, name)
            yield from need(value is None or value > 0, name, value, "at least 1")
        for name in ("num_queries", "cross_attention_frequency", "embed_dim"):
            yield from need(getattr(self, name) > 0, name, getattr(self, name), "at least 1")
        yield from need(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")
        yield from need(0.001 <= self.temperature <= 0.5, "temperature", self.temperature, "from 0.001 to 0.5")
        given = [name for name in ("tokenizer", "layers", "width", "heads") if getattr(self, name) is not None]
        if self.bert is not None and given:
            yield Problem("", f"names bert, which has its own {given[0]}: drop one of the two.")
        if self.bert is None and self.tokenizer is None:
            yield Problem(
                "",
                "has no word pieces: name bert, or as tokenizer a folder with a vocab.txt (minichat data vocabulary "
                "makes one of your texts).",
            )
        if self.bert is None and (self.width or 1) > 0 and (self.heads or 1) > 0:
            sizes = self.sizes
            yield from divides("width", sizes["hidden_size"], "heads", sizes["num_attention_heads"])

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
class QFormerOptions(Checked):
    """BLIP-2's first stage. Without `new` it goes on with the stage-1 folder that `model.name` names."""

    new: NewQFormer | None = None
    """A Q-Former to begin with."""
    objectives: tuple[str, ...] = OBJECTIVES
    """Some of image–text contrast (itc), image–text matching (itm) and image-grounded text generation (itg)."""
    label_smoothing: float = 0.1
    """Of contrast and generation."""

    def problems(self) -> Iterator[Problem]:
        known = bool(self.objectives) and set(self.objectives) <= set(OBJECTIVES)
        yield from need(known, "objectives", list(self.objectives), f"some of {', '.join(OBJECTIVES)}")
        yield from need(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")


# --- What a configuration says of a part that is trained from nothing: its sizes.


@dataclass(frozen=True)
class NewVision(Checked):
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
    contrastive_weight: float = 0.1
    """Of the contrastive loss of pictures and captions, beside what each patch must tell."""

    def problems(self) -> Iterator[Problem]:
        yield from check_sizes(self, ("image_size", "patch_size", "width", "layers", "heads"), "contrastive_weight")
        yield from divides("image_size", self.image_size, "patch_size", self.patch_size)


@dataclass(frozen=True)
class NewLanguage(Checked):
    """A language model: a LLaMA, smaller, and its tokenizer."""

    initialize_from: str | None = None
    """A folder that this stage wrote, to go on from; then the tokenizer and all sizes below are that folder's."""
    template: str = "minigpt-v2"
    """The prompt template, whose delimiters are among what the tokenizer is trained on."""
    vocab_size: int = 1024
    """Pieces of the tokenizer."""
    corpus: Literal["templates", "people"] = "templates"
    """Whose dialogues the tokenizer is trained on: those of templates, or in people's words."""
    context_length: int = 1024
    """Tokens that it can read."""
    width: int = 256
    """Of a token's vector."""
    intermediate_size: int = 688
    """Of the feed-forward parts."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of each; they share the width."""
    noise: float = 0.3
    """Of what stands for a picture, over the size of a word's vector: image tokens will not be exact either."""

    def problems(self) -> Iterator[Problem]:
        counts = ("vocab_size", "context_length", "width", "intermediate_size", "layers", "heads")
        yield from check_sizes(self, counts, "noise")


def check_sizes(sizes: NewVision | NewLanguage, counts: Sequence[str], share: str) -> Iterator[Problem]:
    """Of counts below 1, a share below 0, and heads that cannot share the width."""
    for name in counts:
        yield from need(getattr(sizes, name) > 0, name, getattr(sizes, name), "at least 1")
    yield from need(getattr(sizes, share) >= 0, share, getattr(sizes, share), "0 or more")
    yield from divides("width", sizes.width, "heads", sizes.heads)


def divides(name: str, whole: int, part_name: str, part: int) -> Iterator[Problem]:
    """Of a `part` that does not divide `whole`."""
    if min(whole, part) > 0 and whole % part:
        yield Problem(name, f"is {whole}, which {part_name} ({part}) does not divide: make it a multiple.")


# --- What a training run is told: one YAML file for each stage and model, with `key.sub=value` overrides.
#
# Everything that changes the result is here. The configuration as run is written beside the result, and reads back
# equal.


#: Where each stage is; it is imported when it is asked for.
STAGES = {
    "finetune": "minichat.train.stages.finetune:Finetune",
    "qformer": "minichat.train.stages.qformer:Pretraining",
    "vision": "minichat.toy.train_vision:Vision",
    "language": "minichat.toy.train_lm:Language",
    "word_alignment": "minichat.toy.train_vision:WordAlignment",
}


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The model that is trained, and how it is held in memory."""

    name: str = "minichat-tiny"
    """A known name, a folder (a whole model or a trained projection), or a hub id."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; `auto` takes what is there. One device of several: CUDA_VISIBLE_DEVICES."""
    dtype: Dtype = "auto"
    """Precision of the frozen parts, and of the arithmetic; what trains is kept in float32."""
    quantize: Quantize | None = None
    """Hold the LLM's matrices in 8 or 4 bits (bitsandbytes)."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing of the LLM: about a third more time for much less memory."""
    vision_dtype: Dtype | None = None
    """Precision of the vision encoder where it is not `dtype`."""
    vision_drop_path_rate: float = 0.0
    """Share of the vision encoder's residual branches that are left out, rising with depth; only where it trains."""
    vision_gradient_checkpointing: bool = False
    """Gradient checkpointing of the vision encoder; only where it trains."""

    def problems(self) -> Iterator[Problem]:
        yield from need(bool(self.name), "name", self.name, "a model")
        rate = self.vision_drop_path_rate
        yield from need(0 <= rate < 1, "vision_drop_path_rate", rate, "from 0 to below 1")


@dataclass(frozen=True)
class Source(Checked):
    """A data set."""

    source: str
    """A file or a folder, or a pattern of tars."""
    format: str | None = None
    """Its format, where it is not to be told from its content."""
    ratio: float = 1.0
    """Of streams: how often this one is drawn from, relative to the others."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the format's reader takes, such as the names of columns."""

    def problems(self) -> Iterator[Problem]:
        yield from need(bool(self.source), "source", self.source, "a file or a folder")
        yield from need(0 < self.ratio < math.inf, "ratio", self.ratio, "above 0")


@dataclass(frozen=True)
class DataConfig(Checked):
    """What it learns from, and how that is spelled."""

    train: tuple[Source, ...] = ()
    """The data sets, one after another; streams are drawn from by their ratios."""
    validation: tuple[Source, ...] = ()
    """Held out: its loss chooses the best checkpoint, and its pictures are in the report."""
    streaming: bool = False
    """Read as the run goes, shuffled a little, for sets too large to be listed first; needs run.max_steps."""
    several_captions: SeveralCaptions = "each"
    """Of several captions of one picture: each is a sample; the first alone; or one drawn in each epoch."""
    unknown_keys: UnknownKeys = "refuse"
    """What is done where a record has a key that nothing reads and that may hold what is to be learned."""
    template: str | None = None
    """The prompt template that it is trained with; none: the model's own, which it is served with."""
    max_length: int | None = None
    """A row's length in tokens is cut here; none: at the LLM's context."""
    max_reply_length: int | None = None
    """After the first question, so many tokens are kept of a row; a reply that is cut has no end."""
    max_question_length: int | None = None
    """Of what stands before the first reply, so many tokens are kept, pictures apart; of BLIP-2's templates alone."""
    feature_cache: str | None = None
    """A folder that keeps the frozen parts' output for each picture, not of a stream. None: computed each time."""
    damaged_pictures: Literal["leave_out", "refuse"] = "leave_out"
    """What is done with records whose pictures cannot be opened: found before a run begins, or as they are streamed."""
    num_workers: int = 0
    """Processes that prepare batches ahead; 0: the program itself does."""

    def problems(self) -> Iterator[Problem]:
        yield from need(self.max_length is None or self.max_length > 1, "max_length", self.max_length, "at least 2")
        for name in ("max_reply_length", "max_question_length"):
            limit = getattr(self, name)
            yield from need(limit is None or limit > 0, name, limit, "at least 1")
        yield from need(0 <= self.num_workers <= 256, "num_workers", self.num_workers, "from 0 to 256")


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW or Muon, and a cosine schedule with a linear warm-up."""

    name: Literal["adamw", "muon"] = "adamw"
    """What moves the matrices of layers; all else is moved by AdamW."""
    lr: float = 3e-5
    """The learning rate that the schedule comes down from."""
    lr_by_part: dict[str, float] = field(default_factory=dict)
    """Rates of parts in place of `lr`: names as in `trainable`, `*` for anything, the first that matches counts."""
    min_lr: float = 0.0
    """The learning rate at the end."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises; they are counted among all."""
    warmup_lr: float = 0.0
    """The learning rate at the first of them."""
    weight_decay: float = 0.05
    """Of matrices, with muon of the layers' alone; biases and other one-dimensional tensors have none."""
    beta1: float = 0.9
    """Decay of the running mean of the gradient."""
    beta2: float = 0.999
    """Decay of the running mean of its square."""
    max_grad_norm: float | None = 1.0
    """A longer gradient is scaled down to this norm; none: as it is."""

    def problems(self) -> Iterator[Problem]:
        yield from need(0 < self.lr < math.inf, "lr", self.lr, "above 0")
        for part, lr in self.lr_by_part.items():
            yield from need(0 < lr < math.inf, f"lr_by_part.{part}", lr, "above 0")
        for name in ("min_lr", "warmup_lr"):
            value, wanted = getattr(self, name), f"from 0 to optimizer.lr ({self.lr})"
            yield from need(0 <= value <= self.lr, name, value, wanted, "optimizer.lr")
        yield from need(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        yield from need(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more")
        for name in ("beta1", "beta2"):
            yield from need(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        norm = self.max_grad_norm
        yield from need(norm is None or 0 < norm < math.inf, "max_grad_norm", norm, "above 0, or none")


@dataclass(frozen=True)
class LoraConfig(Checked):
    """Two small matrices that train beside each frozen one of a part (LoRA, arXiv:2106.09685), by PEFT."""

    rank: int = 16
    """The smaller side of both: what is added to a matrix is of this rank."""
    alpha: float = 32.0
    """What is added is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of their inputs that is left out while training."""
    target_modules: tuple[str, ...] = ()
    """Names of linear layers, such as q_proj; none: all but the LLM's output layer."""
    parts: tuple[Literal["language_model", "bridge"], ...] = ("language_model",)
    """Of what the matrices are: the LLM's, the Q-Former's (bridge), or both."""

    def problems(self) -> Iterator[Problem]:
        yield from need(self.rank > 0, "rank", self.rank, "at least 1")
        yield from need(0 < self.alpha < math.inf, "alpha", self.alpha, "above 0")
        yield from need(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")
        yield from need(bool(self.parts), "parts", list(self.parts), "language_model, bridge, or both")


@dataclass(frozen=True)
class RunConfig(Checked):
    """How long, and in what portions."""

    epochs: int | None = None
    """Times over the data set; or give steps."""
    max_steps: int | None = None
    """Optimizer steps, over the data set as often as that takes; or give epochs."""
    batch_size: int = 12
    """Rows of one optimizer step, over all devices."""
    micro_batch_size: int | None = None
    """Rows at once on one device; a step's others follow, and gradients add up. None: the device's share at once."""
    validate_every: int | None = None
    """Steps between validations; none: after each epoch, or at the end where steps are given."""
    patience: int | None = None
    """Stop after so many validations without a better loss; none: never."""
    save_every: int = 500
    """Steps between checkpoints."""

    def problems(self) -> Iterator[Problem]:
        if (self.epochs is None) == (self.max_steps is None):
            given = "is null, and so is" if self.epochs is None else "is given, and so is"
            text = f"{given} run.max_steps; give one of the two, and null for the other."
            yield Problem("epochs", text, ("run.max_steps",))
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            yield from need(value is None or value > 0, name, value, "at least 1")


@dataclass(frozen=True)
class ReportConfig(Checked):
    """What is told of it."""

    log_every: int = 10
    """Steps between lines of progress."""
    samples: int = 8
    """Validation samples whose replies before and after are shown side by side."""
    max_new_tokens: int = 100
    """The longest reply among those."""
    tensorboard: bool = True
    """Keep curves for TensorBoard."""
    wandb: bool = False
    """Send curves to Weights & Biases; it must be installed."""
    project: str = "minichat"
    """What they are filed under there."""
    peak_flops: float | None = None
    """FLOP/s that one device can do in this precision, for the model FLOPs utilisation; none: as its maker says."""

    def problems(self) -> Iterator[Problem]:
        yield from need(self.log_every > 0, "log_every", self.log_every, "at least 1")
        yield from need(0 <= self.samples <= 1000, "samples", self.samples, "from 0 to 1000")
        yield from need(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "at least 1")
        peak = self.peak_flops
        yield from need(peak is None or 0 < peak < math.inf, "peak_flops", peak, "above 0")


@dataclass(frozen=True)
class Config(Checked):
    """A training run."""

    stage: str = "finetune"
    """What is learned: the name of a loss and of what it is computed from (`minichat.train.stages`)."""
    out: str = "runs/finetune"
    """The folder of checkpoints, metrics and the result."""
    seed: int = 0
    """The same seed gives the same run."""
    trainable: tuple[str, ...] = ()
    """The parts that train, by name; none: the stage's own."""
    initialize_from: str | None = None
    """A run's folder, stopped or finished, or a model: what trains begins with its weights, and the optimizer anew."""
    lora: LoraConfig | None = None
    """Adapters of frozen parts that train beside these; of the stage `finetune` alone."""
    model: ModelConfig = field(default_factory=ModelConfig)
    qformer: QFormerOptions | None = None
    """Of the stage `qformer` alone."""
    vision: NewVision | None = None
    """Of the stage `vision` alone."""
    language: NewLanguage | None = None
    """Of the stage `language` alone."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(epochs=1))
    report: ReportConfig = field(default_factory=ReportConfig)

    def problems(self) -> Iterator[Problem]:
        yield from need(self.stage in STAGES, "stage", self.stage, f"one of {', '.join(STAGES)}")
        yield from need(bool(self.out), "out", self.out, "a folder")
        yield from need(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2147483647")
        yield from need(bool(self.data.train), "data.train", list(self.data.train), "a list of data sets")
        for name in ("qformer", "vision", "language"):
            if getattr(self, name) is not None and self.stage != name:
                yield Problem(name, f"is for the stage {name}, but stage is {self.stage!r}: drop it.", ("stage",))
        parts = {part: part.split(".")[0] for part in self.trainable}
        yield from self._of_lora(set(parts.values()))
        seen = ("vision_model",) if self.stage == "qformer" else ("vision_model", "bridge")
        trained = [part for part, top in parts.items() if top in seen]
        trained += [part for part in (self.lora.parts if self.lora else ()) if part in seen]
        if self.data.feature_cache and trained:
            text = f"keeps what the frozen parts see, but {trained[0]} trains, by trainable or lora: drop one."
            yield Problem("data.feature_cache", text, ("trainable", "lora.parts", "stage"))
        if self.data.feature_cache and self.data.streaming:
            text = "is made of all pictures before the run begins, and data.streaming does not list them: drop one."
            yield Problem("data.feature_cache", text, ("data.streaming",))
        if "vision_model" not in parts.values():
            for name in ("vision_drop_path_rate", "vision_gradient_checkpointing"):
                if getattr(self.model, name):
                    yield Problem(f"model.{name}", "is for a vision_model that trains: drop it.", ("trainable",))
        if self.data.streaming and self.run.max_steps is None:
            text = "has no end, so an epoch has none: give run.max_steps, not run.epochs."
            yield Problem("data.streaming", text, ("run.max_steps", "run.epochs"))
        if self.run.patience and not self.data.validation:
            text = "waits for a better validation loss, but data.validation is empty."
            yield Problem("run.patience", text, ("data.validation",))

    def _of_lora(self, learning: set[str]) -> Iterator[Problem]:
        """What cannot be beside a quantized language model, or an adapter. `learning`: parts of which some trains."""
        parts = self.lora.parts if self.lora else ()
        if self.model.quantize and "language_model" in learning:
            text = (
                f"is {self.model.quantize!r}, but trainable names the language_model: what is quantized cannot train."
            )
            yield Problem("model.quantize", text, ("trainable",))
        if self.lora and self.stage != "finetune":
            yield Problem("lora", f"is for the stage finetune, but stage is {self.stage!r}: drop it.", ("stage",))
        for part in (part for part in parts if part in learning):
            yield Problem("lora", f"trains beside a frozen {part}, but trainable names it: drop one.", ("trainable",))


def check_unused(config: Config, names: Iterable[str]) -> None:
    """Raise `ConfigError` where any of these settings is not as it is when nothing is said of it."""
    usual = Config(data=DataConfig(train=config.data.train))
    given = [name for name in names if attrgetter(name)(config) != attrgetter(name)(usual)]
    if given:
        raise ConfigError([Problem(name, f"means nothing to the stage {config.stage}: drop it.") for name in given])


#: What may differ between a run and its resumption: no result depends on it, save for rounding and for what a process
#: or a part draws for itself (dropout).
FREE = (
    "out",
    "model.device",
    "data.feature_cache",
    "data.num_workers",
    "run.micro_batch_size",
    "run.save_every",
    "report",
)


def config_of(content: Any) -> Config:
    """A configuration that a run wrote as a plain dict, in new names or old. Raises `SettingsError`."""
    return build(Config, new_names(content, {}))


def _warn(text: str) -> None:
    warnings.warn(text, FutureWarning, stacklevel=3)


def read_config(
    path: str | os.PathLike[str], overrides: Iterable[str] = (), say: Callable[[str], None] = _warn
) -> Config:
    """A YAML file with overrides, checked. `say` is told where old names are in it.

    Raises `SettingsError`, naming the field, for anything that is not right.
    """
    file = Path(path)
    try:
        with open_file(file) as opened:
            text = opened.read().decode("utf-8")
    except FileNotFoundError:
        raise SettingsError(f"There is no configuration {os.fspath(path)!r}: check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise SettingsError(
            f"The configuration {file.name!r} cannot be read as text ({reason}): check the path."
        ) from None
    content = read_yaml(text, file.name)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file.name} is no configuration: it must hold keys and their values.")
    told: dict[str, str] = {}
    content = new_names(content, told)
    override(content, overrides, told)
    if told:
        news = ", ".join(f"{old} is now {new}" for old, new in told.items())
        say(f"{file.name}: old names, which the next release does not read: {news}.")
    return build(Config, content, file.name)


def difference(run: Any, asked: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first key in which two configurations, as plain dicts, differ, with both values; None where none does.

    Keys that change no result (`FREE`) may differ.
    """
    if name in FREE or run == asked:
        return None
    if isinstance(run, dict) and isinstance(asked, dict):
        for key in [*run, *(key for key in asked if key not in run)]:
            inner = f"{name}.{key}" if name else key
            if found := difference(run.get(key), asked.get(key), inner):
                return found
        return None
    return name, run, asked
