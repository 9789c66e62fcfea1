"""What trains and by which loss: frozen parts, cross-entropy, encoder–decoder LLMs, and losses over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from minichat.errors import SettingsError
from minichat.prompt.render import IGNORED

# --- Which parts train. Frozen is frozen: no gradient, and no dropout either, also after `model.train()`.


def set_trainable(model: nn.Module, parts: Iterable[str] = ("projection",)) -> dict[str, int]:
    """Let the named parts train and freeze the rest.

    A part is a module or a parameter by its dotted name: "projection", "bridge.query_tokens", "language_model". No
    part at all freezes everything. Returns the number of parameters of each part, and of the rest under "frozen".
    Raises `SettingsError` where a name is not one of the model's.
    """
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    # A tied weight has several names and is one parameter: it trains when any of them is asked for.
    names = dict(model.named_parameters(remove_duplicate=False))
    counts = dict.fromkeys((*parts, "frozen"), 0)
    owner: dict[int, str] = {}
    for part in parts:
        held = [weight for name, weight in names.items() if name == part or name.startswith(f"{part}.")]
        if not held:
            known = ", ".join(name for name, _ in model.named_children())
            raise SettingsError(
                f"trainable: this model has no part {part!r}; its parts are {known}, and what is in them."
            )
        for weight in held:
            owner.setdefault(id(weight), part)
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in owner)
        counts[owner.get(id(weight), "frozen")] += weight.numel()
    model.train(model.training)
    return counts


def rest_frozen_parts(module: nn.Module) -> None:
    """Put every part whose parameters are all frozen into eval mode, as deep down as they are."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.eval()
        # A frozen LLM passes gradients on to the projection. transformers checkpoints a layer only in train mode, so
        # the layer itself keeps the mark; the dropouts are in its children.
        for layer in module.modules():
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                layer.training = True
    else:
        for child in module.children():
            rest_frozen_parts(child)


# --- Next-token cross-entropy, where it is wanted and nowhere else.


_SUPERVISED = 128  # supervised ids come in multiples of it
_LOGITS_AT_ONCE = 2**24  # in float32: 64 MiB, and three times that while their gradient is computed


def token_loss(logits: Tensor, targets: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in float32 of logits (..., V) against targets (...), −100 = no loss.

    The sum over all tokens divided by `count`, or by the number of tokens. A few rows at a time are held in float32, so
    that a large vocabulary costs little more than its logits in the precision they come in.
    """
    targets = targets.to(logits.device).flatten()
    total: Tensor = _SummedCrossEntropy.apply(logits.flatten(0, -2), targets)
    return total / (targets.ne(IGNORED).sum() if count is None else torch.as_tensor(count, device=total.device))


def supervised(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat labels (B · T,), −100 = no loss → the positions of the others, and their labels, both (N,).

    N is a multiple of 128, filled up with position 0 and target −100: on a CPU, oneDNN compiles and keeps a product for
    each shape that it meets, which without an end to them takes time and memory.
    """
    positions = labels.ne(IGNORED).nonzero()[:, 0]
    spare = -len(positions) % _SUPERVISED
    return nn.functional.pad(positions, (0, spare)), nn.functional.pad(labels[positions], (0, spare), value=IGNORED)


class _SummedCrossEntropy(torch.autograd.Function):
    """Logits (N, V), targets (N,) → (), their gradient computed at once rather than on the way back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradients = []
        rows = _rows_at_once(logits)
        for some, aims in zip(logits.split(rows), targets.split(rows), strict=True):
            with torch.set_grad_enabled(wanted):
                part = some.detach().requires_grad_(wanted)
                loss = nn.functional.cross_entropy(part.float(), aims, ignore_index=IGNORED, reduction="sum")
            if wanted:
                gradients += torch.autograd.grad(loss, part)
            total += loss.detach()
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (saved,) = ctx.saved_tensors
        # In half precision the factor itself would be rounded, and every gradient with it.
        scaled = [(some.float() * gradient).to(some.dtype) for some in saved.split(_rows_at_once(saved))]
        return torch.cat(scaled), None


def _rows_at_once(logits: Tensor) -> int:
    return max(1, _LOGITS_AT_ONCE // logits.shape[-1])


@contextmanager
def only_at(head: nn.Module, positions: Tensor | None) -> Iterator[None]:
    """Meanwhile `head` is given the hidden states (B, T, H) of N positions alone, as (1, N, H); None: all of them.

    Whatever an LLM does between its head and its logits, it does to those. `positions` (B, T) is true N times, or holds
    the N places (N,) in the flat B · T, which needs no waiting for the device to count them.
    """
    if positions is None:
        yield
        return

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].flatten(0, 1)[positions.flatten().to(inputs[0].device)].unsqueeze(0),)

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def seen_by(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the hidden states that `head` is given meanwhile."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


# --- Encoder–decoder LLMs, such as T5: the encoder reads pictures and question, the decoder writes the reply.
#
# Shapes: B rows, T tokens of the prompt, R of the reply, H the LLM's width, V the vocabulary.


def encode_and_decode(
    llm: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    num_items_in_batch: int | Tensor | None = None,
    skip_logits: bool = False,
    **kwargs: Any,
) -> tuple[Tensor | None, ModelOutput]:
    """One pass: prompts (B, T, H) and, as `labels`, replies (B, R) with −100 = no loss → loss, and the LLM's output.

    The decoder reads `decoder_input_ids` or `decoder_inputs_embeds` where they are given, else the labels behind a
    start token. `skip_logits`: logits (1, N, V) of the N supervised positions alone are computed.
    """
    given = any(kwargs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    if labels is not None and not given:
        kwargs["decoder_input_ids"] = llm.prepare_decoder_input_ids_from_labels(labels=labels)
    at = labels.ne(IGNORED) if labels is not None and skip_logits else None  # (B, R)
    with only_at(llm.get_output_embeddings(), at):
        output = llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
    if labels is None:
        return None, output
    return token_loss(output.logits, labels if at is None else labels[at], num_items_in_batch), output


# --- Processes that train together act on one batch: their rows, joined in the order of their ranks.
#
# Where there is one process, everything here is the identity.


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gather(rows: Tensor) -> Tensor:
    """This process's rows (B, …) → the joined batch's (G, …).

    The gradient comes back from every process's use of them. Processes may have unlike numbers of rows.
    """
    return rows if processes() == 1 else _Gather.apply(rows, _sizes(rows))


def first_row(rows: Tensor) -> int:
    """Where this process's rows begin in the joined batch."""
    return 0 if processes() == 1 else sum(_sizes(rows)[: rank()])


def everyones(count: Tensor | int, device: torch.device) -> Tensor:
    """The sum of `count` over all processes, a scalar on the device."""
    together = torch.as_tensor(count, device=device, dtype=torch.float32).clone()
    if processes() > 1:
        dist.all_reduce(together)
    return together


def longest(length: int, device: torch.device) -> int:
    """The greatest `length` of any process."""
    if processes() == 1:
        return length
    greatest = torch.tensor(length, device=device)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return int(greatest)


def mean(total: Tensor, count: Tensor | int) -> Tensor:
    """A sum and a number of items → this process's share of the mean over all processes' items, times their number.

    So the mean over processes, and of their gradients (which is what data-parallel training computes), is the joined
    batch's, also where they have unlike numbers of items.
    """
    return total * processes() / everyones(count, total.device).clamp(min=1)


def _sizes(rows: Tensor) -> list[int]:
    own = torch.tensor([rows.shape[0]], device=rows.device)
    every = [torch.empty_like(own) for _ in range(processes())]
    dist.all_gather(every, own)
    return [int(size) for size in every]


class _Gather(torch.autograd.Function):
    """Forward: all processes' rows. Backward: the sum of all processes' gradients of this one's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = torch.nn.functional.pad(rows.detach(), (0, 0) * (rows.dim() - 1) + (0, max(sizes) - rows.shape[0]))
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        together = gradients[0].contiguous().clone()
        dist.all_reduce(together)
        return together.split(ctx.sizes)[rank()], None


# --- What the processes of a run know and do together. With one process, nothing is exchanged.


class ProcessGroup:
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
