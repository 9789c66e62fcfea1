"""What the processes of a run know and do together. With one process, nothing is exchanged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Together:
    """The processes of a run, on one machine or several.

    Weights are kept equal by adding up gradients: the frozen parts, which may be quantized and of many gigabytes, are
    never sent, and a part that got no gradient in some process (a batch without a picture) keeps no one waiting.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count
        self._host: Any = None
        if count > 1:
            # Through the host: what is agreed on before a step must not wait for the device to end the step before.
            self._host = torch.distributed.new_group(backend="gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, *numbers: int) -> list[int]:
        """The sum of each number over all processes."""
        if self.count == 1:
            return list(numbers)
        added = torch.tensor(numbers, dtype=torch.int64)
        torch.distributed.all_reduce(added, group=self._host)
        return added.tolist()

    def add_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Give each weight the sum of its gradients over all processes; one that has none anywhere gets zero."""
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self.count > 1:
                torch.distributed.all_reduce(weight.grad)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes of values on the device."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0, group=self._host)
        return held[0]

    def from_all(self, value: Any) -> list[Any]:
        """Every process's value, in every process."""
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(held, value, group=self._host)
        return held

    def listed(self, here: Iterable[str]) -> str:
        """What is named in any process, each once; the first twelve."""
        named = list(dict.fromkeys(name for some in self.from_all(list(here)) for name in some))
        return ", ".join(named[:12]) + (" and more" if len(named) > 12 else "")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier(group=self._host)
