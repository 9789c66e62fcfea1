"""One of several processes that train together, each on its share of a batch; see `test_pretraining_processes.py`.

`work` writes what each process computed for each of the `SCENARIOS` to a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from minichat.model import set_trainable
from minichat.model.qformer_pretrain import QFormerPretraining
from tests.tiny_stage1 import SIDE, pairs, tiny_pretraining

COUNT = 4
NEGATIVES = (torch.tensor([3, 2, 0, 1]), torch.tensor([2, 0, 3, 1]))

#: Name → what changes the model, and what changes the batch.
SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "given negatives": ({}, {"negatives": NEGATIVES}),
    "drawn negatives": ({}, {"seed": 7}),
    "several captions": ({}, {"seed": 7, "image_ids": torch.tensor([2, 5, 5, 8])}),
    "all learns": ({"compared_learn": True, "vision": True}, {"seed": 3}),
}


def model_of(name: str) -> QFormerPretraining:
    changes = dict(SCENARIOS[name][0])
    vision = changes.pop("vision", False)
    model = tiny_pretraining(**changes)
    set_trainable(model, [*model.config.trainable, *(["vision_model"] if vision else [])])
    return model.eval()


def batch_of(name: str, start: int = 0, end: int = COUNT) -> dict[str, Any]:
    """Some rows, as short as they can be: processes have texts of unlike lengths."""
    extra = SCENARIOS[name][1]
    batch: dict[str, Any] = {key: value[start:end] for key, value in pairs(COUNT).items()}
    longest = int(batch["attention_mask"].sum(1).max())
    batch |= {key: batch[key][:, :longest] for key in ("input_ids", "attention_mask")}
    if SCENARIOS[name][0].get("vision"):
        del batch["patches"]
        pixels = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        batch["pixel_values"] = pixels[start:end]
    if "negatives" in extra:
        batch["negatives"] = tuple(indices[start:end] for indices in extra["negatives"])
    if "image_ids" in extra:
        batch["image_ids"] = extra["image_ids"][start:end]
    return batch | ({"seed": extra["seed"]} if "seed" in extra else {})


def computed(model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Losses, negatives, and every gradient."""
    output = model(**batch)
    output.loss.backward()
    found = {name: output[name].detach() for name in ("loss", "itc", "itm", "itg")}
    found |= {"pictures": output.negatives[0], "texts": output.negatives[1]}
    held = model.module if isinstance(model, DistributedDataParallel) else model
    return found | {f"grad.{n}": w.grad for n, w in held.named_parameters() if w.grad is not None}


def work(rank: int, processes: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    bounds = [0, 3, 4] if processes == 2 else [*range(processes), COUNT]
    results = {}
    for name in SCENARIOS:
        batch = batch_of(name, bounds[rank], bounds[rank + 1])
        results[name] = computed(DistributedDataParallel(model_of(name)), batch)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
