"""Training stages: what the loop asks of one, and the table of those that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from minichat.train.config import STAGES, Config

if TYPE_CHECKING:
    import torch

    from minichat.data.dataset import Row
    from minichat.data.example import Example, StoredPicture, Where
    from minichat.model.loss import ProcessGroup

    Seen = tuple[Where, StoredPicture]
    Told = Callable[[Where, StoredPicture, str], None]
    Say = Callable[[str], None]


# --- What the loop asks of a stage.


Batch = dict[str, Tensor]

#: Settings that mean nothing to a stage that loads no model.
OF_A_MODEL = (
    "model.name",
    "model.quantize",
    "model.gradient_checkpointing",
    "model.vision_dtype",
    "data.template",
    "data.max_reply_length",
    "data.max_question_length",
    "data.feature_cache",
)


def silent(text: str) -> None:
    """Where nobody is to be told."""


class Stage(Protocol):
    """A loss over batches, a list of what trains, and what its batches are made of.

    A stage inherits what it has no better answer to: nothing is kept of pictures, and nothing is said of them.
    """

    trainable: ClassVar[tuple[str, ...]]
    """What trains unless the configuration says otherwise."""
    lighter: ClassVar[tuple[str, ...]] = ("run.micro_batch_size",)
    """Settings by which a step needs less memory, the best first."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Settings that mean nothing to it, and are refused where they are given."""
    joined: ClassVar[bool] = False
    """The loss is over the rows of all processes at once, so each must take part, with no row if need be."""
    model: nn.Module
    """The network, its frozen parts among it."""

    terms: Sequence[str] = ()
    """Names of the losses whose sum is minimised, where there are several."""
    notes: Sequence[str] = ()
    """Sentences for a person, said when a run begins."""

    render: Callable[[Example], Row]
    """An example as ids, labels and pictures."""
    longest: int
    """The most tokens of a row."""
    collate: Callable[[Sequence[Row]], Batch]
    """Rows as tensors on the host, with all that can be worked out there."""

    def __init__(self, config: Config, device: torch.device) -> None:
        """Load or make what is trained. Raises `SettingsError` for settings that cannot be."""

    def __getstate__(self) -> dict[str, Any]:
        """For a loader's worker, where it renders and collates: what is on the device stays here."""
        stays = {name for name, value in vars(self).items() if name in ("model", "bot") or isinstance(value, Tensor)}
        return {name: value for name, value in vars(self).items() if name not in stays}

    def see(
        self,
        pictures: Sequence[Seen],
        folder: str,
        workers: int,
        group: ProcessGroup,
        damaged: Told | None = None,
        say: Say = silent,
    ) -> None:
        """Keep in `folder` what frozen parts make of the pictures, so that `collate` opens none.

        `damaged` is told of those that cannot be opened, and why.
        """
        return

    def count(self, batch: Batch) -> int:
        """Over how many things the loss is a sum; known on the host."""

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the losses of a batch that is on the device, (), or one for each of `terms`, (n,).

        Waits for nothing.
        """

    def memory(self, rows: int, longest: int) -> int | None:
        """Bytes that a step needs of so many rows at once, of so many tokens; None where it is not known."""
        return None

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """What the model says to each, for people to compare before and after."""
        return ["" for _ in examples]

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """Put the trained model into the folder `out`."""


# --- What can be learned: a stage is a `loss(batch)`, a list of what trains, and what its batches are made of.
#
# The loop is the same for all stages. A loss is a *sum*, over `count(batch)` things, so that a step's mean is over all
# processes and all the parts in which its gradient is accumulated.


def stage_of(name: str) -> type[Stage]:
    """The stage of a configuration."""
    stage: type[Stage] = resolve_name(STAGES[name])
    return stage
