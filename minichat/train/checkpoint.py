"""A run's state and where it is kept: optimizer, learning rate, random numbers, checkpoints, configuration."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minichat.errors import ModelError, SettingsError, sentence, some
from minichat.fileio import disk_errors, open_to_others, replace_file, to_disk
from minichat.train.config import Config, OptimizerConfig, config_of, read_config
from minichat.train.yaml_config import plain, write_yaml
from minichat.weights.checkpoint_io import KEY, checksum
from minichat.weights.hub import FACTS, is_projection, weight_files
from minichat.weights.projection import read_projection
from minichat.weights.registry import find

# --- The files of a run's folder in which it keeps and tells what it did. What it trained stands beside them.


LOCK = ".lock"
CONFIG, METRICS, LEFT_OUT = "config.yaml", "metrics.jsonl", "left_out.txt"
BEFORE, CURVE, PAGE = "before.json", "curve.png", "report.html"
CHECKPOINTS = "checkpoints"  # a folder
TRAINING = "training.json"  # the facts of the run that made a folder of weights
LESSONS, TEACHING = "lessons", "teaching.json"  # of `minichat teach`: a folder of what is learnt from; what came of it

#: Where a run begins with another run's folder, these are not of the model that is there.
OF_A_RUN = frozenset({LOCK, CONFIG, METRICS, LEFT_OUT, BEFORE, CURVE, PAGE, TRAINING, TEACHING})


# --- The learning rate of each step.


def lr_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """The learning rate of step `step` of `steps`, counted from 0.

    A linear warm-up from `warmup_lr` to `lr` over the first `warmup_steps`, then a cosine from `lr` to `min_lr` that is
    measured over all steps, so that it joins a little below `lr` (as the runs of MiniGPT-4 did: its
    `minigpt4/common/optims.py::LinearWarmupCosineLRScheduler`).
    """
    if step < config.warmup_steps:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / config.warmup_steps
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * step / steps))


def lr_scales(names: Iterable[str], config: OptimizerConfig) -> dict[str, float]:
    """By which the schedule is multiplied for each parameter: 1, or `lr_by_part`'s rate over `lr`.

    The first pattern that matches counts. Raises `SettingsError` for a pattern that no parameter is left for.
    """
    scales, used = {}, set[str]()
    for name in names:
        pattern = next((part for part in config.lr_by_part if _is_in(name, part)), None)
        scales[name] = 1.0 if pattern is None else config.lr_by_part[pattern] / config.lr
        used |= set() if pattern is None else {pattern}
    for part in config.lr_by_part:
        if part not in used:
            earlier = any(_is_in(name, part) for name in scales)
            why = (
                "what it matches is matched by a pattern before it" if earlier else "nothing that trains has that name"
            )
            raise SettingsError(
                f"optimizer.lr_by_part: {part!r} is of no use, since {why} (what trains is {some(scales)})."
            )
    return scales


def _is_in(name: str, part: str) -> bool:
    """Whether a parameter is the part or in it, as `trainable` names parts; `*` stands for anything."""
    return fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*")


# --- AdamW over what trains, or Muon over its matrices, and their state as named tensors.


_PREFIX = "optimizer."


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; a tied one once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def make_optimizer(weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; biases and other tensors of fewer than two dimensions do not decay. Or Muon for the layers' matrices.

    Parameters of one learning rate are groups of their own; `set_lr` moves all.
    """
    if config.name == "muon":
        return MuonAndAdamW(weights, config)
    groups = []
    for scale, part in _by_scale(weights, config):
        decays = [weight for weight in part.values() if weight.dim() >= 2]
        stays = [weight for weight in part.values() if weight.dim() < 2]
        groups.append({"params": decays, "weight_decay": config.weight_decay, "lr_scale": scale})
        groups.append({"params": stays, "weight_decay": 0.0, "lr_scale": scale})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2))


def _by_scale(
    weights: Mapping[str, nn.Parameter], config: OptimizerConfig
) -> Iterator[tuple[float, dict[str, nn.Parameter]]]:
    scales = lr_scales(weights, config)
    for scale in dict.fromkeys(scales.values()):
        yield scale, {name: weight for name, weight in weights.items() if scales[name] == scale}


class MuonAndAdamW(torch.optim.Optimizer):
    """PyTorch's Muon for the matrices of layers, and its AdamW for embeddings, heads, norms and biases.

    Both at the same rate, as Muon's update is scaled to be as long as AdamW's (arXiv:2502.16982, section 2.2). Raises
    `SettingsError` where no layer's matrix trains.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        groups: list[dict[str, Any]] = []
        self._inner: list[Any] = []
        for scale, part in _by_scale(weights, config):
            matrices = {name: w for name, w in part.items() if w.dim() == 2 and _IN_LAYER.search(name)}
            others = [weight for name, weight in part.items() if name not in matrices]
            if matrices:
                held = list(matrices.values())
                groups.append({"params": held, "weight_decay": config.weight_decay, "lr_scale": scale})
                self._inner.append(torch.optim.Muon(held, lr=config.lr, adjust_lr_fn="match_rms_adamw"))
            if others:
                groups.append({"params": others, "weight_decay": 0.0, "lr_scale": scale})
                self._inner.append(torch.optim.AdamW(others, lr=config.lr, betas=(config.beta1, config.beta2)))
        if not any(isinstance(inner, torch.optim.Muon) for inner in self._inner):
            raise SettingsError(
                "optimizer.name is muon, which is for the matrices of layers, and none trains: leave it out."
            )
        super().__init__(groups, {"lr": config.lr})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inner = self._inner[len(self.param_groups)]
        super().add_param_group(inner.defaults | param_group)
        self._share()

    def _share(self) -> None:
        """The two keep their state, and find their rates, in what this optimizer saves."""
        for inner, group in zip(self._inner, self.param_groups, strict=False):  # the second is not there at first
            inner.param_groups, inner.state = [group], self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for inner in self._inner:
            inner.step()


_IN_LAYER = re.compile(r"\blayers?\.\d+\.")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Make `lr` the learning rate of the next step, times each group's scale, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def optimizer_tensors(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as tensors: `optimizer.exp_avg.projection.weight` and the like."""
    return {
        f"{_PREFIX}{kind}.{name}": value
        for name, weight in weights.items()
        for kind, value in optimizer.state.get(weight, {}).items()
    }


def is_of_optimizer(name: str) -> bool:
    """Whether a tensor of a checkpoint is of the optimizer's state."""
    return name.startswith(_PREFIX)


def load_optimizer(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if is_of_optimizer(key):
            kind, _, name = key.removeprefix(_PREFIX).partition(".")
            state.setdefault(name, {})[kind] = value
    names = {id(weight): name for name, weight in weights.items()}
    whole: dict[str, Any] = optimizer.state_dict()
    order = [weight for group in optimizer.param_groups for weight in group["params"]]
    whole["state"] = {number: state[names[id(w)]] for number, w in enumerate(order) if names[id(w)] in state}
    optimizer.load_state_dict(whole)


# --- The random numbers of a step follow from the run's seed, the step and the process; nothing is to be remembered.


_PROCESSES = 2**10


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch for what is random in a step of one process."""
    torch.manual_seed(((seed * 2**20 + step) * _PROCESSES + rank) % 2**63)


def seed_of_all() -> int:
    """What the present step was seeded with, but for the process: the same in all of them."""
    return torch.initial_seed() // _PROCESSES


# --- Where a run stands, on disk: a file for each checkpoint, whole at any moment.
#
# A checkpoint is one safetensors file: what trains under its own names, the optimizer's state under `optimizer.`, and
# the run's facts (where it stands, and on what data and frozen weights) as JSON in the header, with a checksum of all
# that. The last and the one before are kept.


_KEPT = 2
_SUFFIX, _PART = ".safetensors", ".part"
_BEST = f"best{_SUFFIX}"


@dataclass(frozen=True)
class Saved:
    """A checkpoint, read."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those that are older than the one before it.

        A kill at any point leaves the last one that was whole. Raises `SettingsError` where the disk does not take it.
        """
        path = self.folder / f"step-{step:08}{_SUFFIX}"
        try:
            _write(path, tensors, {**facts, "step": step})
        except _NotWritten as error:
            before = [step for step in self._steps() if step != path]
            kept = f"the run goes on from the one before, {before[-1].name}" if before else "there is none before it"
            raise SettingsError(f"The checkpoint {path.name} cannot be written ({error}): make room; {kept}.") from None
        for old in self._steps()[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the weights with the best validation loss so far. Raises `SettingsError` as `save` does."""
        try:
            _write(self.folder / _BEST, tensors, {**facts, "step": step})
        except _NotWritten as error:
            raise SettingsError(f"The best weights, {_BEST}, cannot be written ({error}): make room.") from None

    def last(self, say: Callable[[str], None] = lambda text: None, *, tidy: bool = True) -> Saved | None:
        """The newest checkpoint that is as it was written; None where there is none at all.

        One that is not is told. Raises `ModelError`, naming them, where there are some and all are damaged.

        `tidy`: put damaged ones aside under another name, and remove what a killed writer left; for the run itself.
        """
        for leftover in self.folder.glob(f"*{_PART}") if tidy else ():
            leftover.unlink(missing_ok=True)
        damaged: list[tuple[Path, str]] = []
        for path in reversed(self._steps()):
            try:
                saved = _read(path)
            except ModelError as error:
                damaged.append((path, str(error)))
                continue
            for file, reason in damaged:
                say(f"{reason} The one before it, {path.name}, is taken instead.")
                if tidy:
                    _put_aside(file)
            return saved
        if damaged:
            raise ModelError(f"{' '.join(reason for _, reason in damaged)} {self._left()}")
        return None

    def _left(self) -> str:
        """What remains where no checkpoint can be read."""
        try:
            best = self.best()
        except ModelError:
            best = None
        run = self.folder.parent
        if best is None:
            return f"None is left in {run.name!r}: begin anew in another out."
        return (
            f"None is left in {run.name!r} but {_BEST}, the best weights, after step {best.step}: begin with them in "
            f"another out, by --initialize-from {run}."
        )

    def best(self) -> Saved | None:
        """The weights with the best validation loss; None where nothing was validated.

        Raises `ModelError` where they are damaged.
        """
        return _read(self.folder / _BEST) if (self.folder / _BEST).exists() else None

    def _steps(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob(f"step-*{_SUFFIX}"))


class _NotWritten(Exception):
    """The disk does not take a file; the message is the reason."""


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(path.name + _PART)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = json.dumps(facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(held, part, metadata={"facts": said, KEY: checksum(held.items(), said)})
        open_to_others(part)
        to_disk(part)
        os.replace(part, path)
        to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise _NotWritten(getattr(error, "strerror", None) or sentence(error)) from None


def _read(path: Path) -> Saved:
    """Raises `ModelError` for a file that is not as it was written; one of an earlier version has no checksum."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            said, written = file.metadata()["facts"], file.metadata().get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if written is not None and written != checksum(tensors.items(), said):
            raise ValueError("what it holds does not match its checksum")
        facts = json.loads(said)
        return Saved(int(facts["step"]), tensors, facts)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The checkpoint {path.name} is damaged ({sentence(error)}).") from None


def _put_aside(damaged: Path) -> None:
    """Out of the way of those to come, and still there to be looked at."""
    with suppress(OSError):
        os.replace(damaged, damaged.with_name(damaged.name + ".damaged"))


# --- A run's `config.yaml`, which a run that goes on is held against: written with a checksum, and read with care.


_SUM = re.compile(rb"# sha256 of what follows: ([0-9a-f]{64})\r?\n")


def keep_config(out: Path, config: Config) -> None:
    """Write a configuration. Raises `SettingsError` where the disk does not take it."""
    text = write_yaml(config).encode()
    with disk_errors(CONFIG, SettingsError):
        replace_file(out / CONFIG, f"# sha256 of what follows: {hashlib.sha256(text).hexdigest()}\n".encode() + text)


def kept_config(out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The configuration of the run in a folder, as a plain dict.

    Where the file is damaged the newest checkpoint tells it, and it is written anew. Raises `SettingsError` where no
    checkpoint does.
    """
    try:
        return plain(_read_config(out / CONFIG))
    except SettingsError as error:
        damage = f"{CONFIG} in {out.name!r} is damaged ({str(error).rstrip('.')})"
    try:
        saved = Checkpoints(out / CHECKPOINTS).last(say, tidy=False)
    except ModelError:
        saved = None
    if saved is None or "config" not in saved.facts:
        raise SettingsError(
            f"{damage}, and no checkpoint tells what it held: put back a copy of it, or begin anew in another out."
        )
    config = config_of(saved.facts["config"])
    keep_config(out, config)
    say(f"{damage}: it is written anew, as the checkpoint of step {saved.step} has it.")
    return plain(config)


def _silent(text: str) -> None:
    """For what nobody need know."""


def _read_config(path: Path) -> Config:
    """Raises `SettingsError` for a file that is not as it was written; one of an earlier version has no checksum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"it cannot be read: {error.strerror}") from None
    written = _SUM.match(content)
    if written and hashlib.sha256(content[written.end() :]).hexdigest() != written[1].decode():
        raise SettingsError("what it holds does not match its checksum")
    return read_config(path, say=_silent)  # an old name in it is nobody's to mend


# --- A run that begins with the weights of another, stopped or finished, or of a model: `initialize_from`.


Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """Weights by their names in the model, and whose they are. `facts`: of a run's checkpoint."""

    whose: str
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_start(source: str, names: Collection[str], say: Say) -> Start:
    """What a run's folder has, or what a model has of these tensors.

    A stopped run's weights are those of its newest checkpoint, a finished one's are its result's. Raises `ModelError`
    where there are none that can be read.
    """
    folder = Path(source).expanduser()
    finished = is_finished(folder)
    saved = _of_run(Checkpoints(folder / CHECKPOINTS), finished, say)
    if saved is not None:
        weights = {name: tensor for name, tensor in saved.tensors.items() if not is_of_optimizer(name)}
        return Start(f"the run {folder.name!r} after step {saved.step}", weights, saved.facts)
    if folder.is_dir() and (folder / CHECKPOINTS).is_dir() and not finished:
        raise ModelError(f"The run in {folder.name!r} has no checkpoint that can be read: name another.")
    return Start(f"the model {folder.name!r}", _of_model(source, names))


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a result."""
    return (folder / FACTS).exists() or (folder / "config.json").exists()


def _of_run(checkpoints: Checkpoints, finished: bool, say: Say) -> Saved | None:
    readers = [lambda: checkpoints.last(say, tidy=False), checkpoints.best]
    for read in reversed(readers) if finished else readers:
        try:
            if (saved := read()) is not None:
                return saved
        except ModelError as error:
            say(str(error))
    return None


def _of_model(name: str, names: Collection[str]) -> dict[str, Tensor]:
    from minichat.weights.checkpoint_io import read_checkpoint

    folder = find(name)
    if is_projection(folder):
        return {f"projection.{part}": tensor for part, tensor in read_projection(folder).tensors().items()}
    held = [read_checkpoint(folder / file) for file in weight_files(folder)]
    return {tensor: checkpoint.plain(tensor) for checkpoint in held for tensor in checkpoint if tensor in names}


@torch.no_grad()
def initialize(weights: Mapping[str, nn.Parameter], start: Start, say: Say) -> None:
    """Copy what trains from a start, and tell what came from there.

    Raises `SettingsError` where nothing of it trains here, where a run trained what does not, and for another shape.
    """
    given = start.tensors
    if start.facts and (others := given.keys() - weights.keys()):
        raise SettingsError(
            f"initialize_from: {start.whose} trained {some(others)}, which this run does not train: name the same "
            "parts in trainable."
        )
    found = [name for name in weights if name in given]
    if not found:
        raise SettingsError(f"initialize_from: {start.whose} has nothing of what trains here ({some(weights)}).")
    for name in found:
        if given[name].shape != weights[name].shape:
            raise SettingsError(
                f"initialize_from: {name} of {start.whose} has the shape {tuple(given[name].shape)}, but here it has "
                f"{tuple(weights[name].shape)}: they do not belong together."
            )
        if not given[name].isfinite().all():
            raise ModelError(f"initialize_from: {name} of {start.whose} holds values that are not finite.")
        weights[name].copy_(given[name])
    lacking = [name for name in weights if name not in given]
    rest = f"; {some(lacking)} begin as they are without it" if lacking else ""
    say(f"The weights are those of {start.whose}{rest}.")
