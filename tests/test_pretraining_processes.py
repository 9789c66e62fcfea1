"""Processes that share a batch compute what one computes with all of it: losses, negatives, every gradient.

The processes are real, over gloo, with PyTorch's own data-parallel averaging of gradients. Their shares are of unlike
sizes, and their texts of unlike lengths. The joined batch is their rows in the order of their ranks.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from minichat.model.loss import first_row, gather, longest, mean
from tests.pretraining_worker import COUNT, SCENARIOS, batch_of, computed, model_of, work
from tests.processes import ended, started


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each process computed."""
    folder, count = tmp_path_factory.mktemp("processes"), request.param
    processes = [started(partial(work, rank, count, folder)) for rank in range(count)]
    assert [ended(process) for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_together_as_alone(together: list[Any], name: str) -> None:
    alone = computed(model_of(name), batch_of(name))
    shares = [results[name] for results in together]
    for loss in ("loss", "itc", "itm", "itg"):
        torch.testing.assert_close(
            torch.stack([share[loss] for share in shares]).mean(), alone[loss], rtol=0, atol=1e-5, msg=loss
        )
    for drawn in ("pictures", "texts"):
        assert torch.cat([share[drawn] for share in shares]).tolist() == alone[drawn].tolist()
    gradients = {key for key in alone if key.startswith("grad.")}
    assert gradients
    for share in shares:
        assert {key for key in share if key.startswith("grad.")} == gradients
        for key in gradients:
            near = max(1e-6, 1e-3 * float(alone[key].abs().max()))
            torch.testing.assert_close(share[key], alone[key], rtol=1e-3, atol=near, msg=f"{name}: {key}")


def test_shares_are_unlike(together: list[Any]) -> None:
    """So that nothing above is true by chance."""
    counts = [len(results["given negatives"]["texts"]) for results in together]
    assert sum(counts) == COUNT
    assert len(set(counts)) > 1
    assert len({float(results["given negatives"]["itg"]) for results in together}) == len(together)
    ends = [sum(counts[:rank]) for rank in range(len(counts) + 1)]
    shares = [batch_of("given negatives", *bounds) for bounds in pairwise(ends)]
    assert len({share["input_ids"].shape[1] for share in shares}) == len(together)


def test_one_process_gathers_itself() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather(rows) is rows
    assert first_row(rows) == 0
    assert longest(9, torch.device("cpu")) == 9
    assert float(mean(torch.tensor(6.0), 4)) == 1.5
    assert float(mean(torch.tensor(0.0), 0)) == 0
