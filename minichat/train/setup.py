"""The model as a run holds it: its precision, its attention, LoRA, and the folder that it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minichat.device.placement import half, quiet_bitsandbytes
from minichat.errors import ModelError, SettingsError, some
from minichat.fileio import new_folder, write_json
from minichat.model.loss import set_trainable
from minichat.prompt.processor import QFORMER
from minichat.train.checkpoint import OF_A_RUN, TRAINING
from minichat.train.config import LoraConfig, ModelConfig
from minichat.weights.adapter import PLACES, read_adapter
from minichat.weights.checkpoint_io import Entry, write_tensors
from minichat.weights.hub import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FACTS,
    WEIGHTS,
    is_projection,
    read_json,
    trained_adapter,
    weight_files,
)
from minichat.weights.projection import read_projection, unpack, write_projection
from minichat.weights.registry import find

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat
    from minichat.model import MiniChatForConditionalGeneration


# --- Attention as plain matrix products, which in bfloat16 on a CPU is faster to learn through than the fused kernel.
#
# PyTorch's fused kernel for the CPU saves the memory of the probabilities; its way back takes twice as long as the
# products that it replaces. So it is left for long texts, for other precisions and for what needs no gradient.


_PRODUCTS = "minichat_products"
_AT_ONCE = 256  # tokens whose scores are one product
_MOST = 2**30  # bytes of probabilities that a step may keep, over all layers


def use_products(llm: Any) -> None:
    """Let an LLM that learns through the fused kernel, in bfloat16 on a CPU, take the products where they suit."""
    weight = llm.get_input_embeddings().weight
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and llm.config._attn_implementation == "sdpa":
        AttentionInterface.register(_PRODUCTS, attend)
        AttentionMaskInterface.register(_PRODUCTS, sdpa_mask)
        llm.set_attn_implementation(_PRODUCTS)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers asks of an attention: queries (B, Q, T, d), keys and values (B, K, S, d) → (B, T, Q, d).

    B rows, Q heads in groups that share one of K, T tokens that look at S. `attention_mask` (B, 1, T, S) is true where
    one may look; None: at what came before.
    """
    rows, heads, tokens, width = query.shape
    shared, seen = key.shape[1:3]
    layers: Any = module.config
    kept = rows * heads * tokens * seen * query.element_size() * layers.num_hidden_layers
    plain = dropout == 0 and getattr(module, "is_causal", True) and all(more.get(name) is None for name in _SPECIAL)
    if scaling is None or not (torch.is_grad_enabled() and plain and kept <= _MOST and _alike(attention_mask)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    if attention_mask is None:
        may = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril(seen - tokens)
    else:
        may = attention_mask[0, 0]
    # Heads that share keys are rows of one product. The first tokens of a text may not look at its last ones: half of
    # all scores would be computed for nothing.
    parts = []
    for asked, looks in zip(query.split(_AT_ONCE, 2), may.split(_AT_ONCE), strict=True):
        seen = int(looks.any(0).nonzero().max()) + 1 if looks.any() else looks.shape[1]
        bias = torch.zeros((len(looks), seen), dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(~looks[:, :seen], torch.finfo(query.dtype).min).repeat(heads // shared, 1)
        found = key[:, :, :seen].reshape(rows * shared, seen, width).transpose(1, 2)
        asked = asked.reshape(rows * shared, -1, width)  # (B · K, Q / K · t, d)
        scores = torch.baddbmm(bias, asked, found, alpha=scaling)  # (B · K, Q / K · t, seen)
        mixed = scores.softmax(-1) @ value[:, :, :seen].reshape(rows * shared, seen, -1)
        parts.append(mixed.view(rows, heads, len(looks), -1))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


#: Options that change the scores, of single LLMs.
_SPECIAL = ("softcap", "position_bias", "s_aux", "cache", "is_causal")


def _alike(mask: Tensor | None) -> bool:
    """Whether it is the same for all rows and heads."""
    return mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1 and bool((mask == mask[:1]).all()))


# --- LoRA by PEFT: small matrices that train beside frozen ones of the LLM or the Q-Former, and the folders they leave.
#
# They are PEFT's own layers, put into these parts alone: PEFT's "all-linear" would take a joined model's vision side
# and projection, too. What is saved is a plain PEFT adapter of the LLM, or of the Q-Former, whatever stands before it.


_ADAPTER = "default"


def adapters_of(model: str) -> dict[str, Path]:
    """The folders of the adapters that a model (as `minichat.load` takes it) has, by the part that each is of."""
    folder = find(model)
    base = read_projection(folder).base_folder() if is_projection(folder) else folder
    found = {part: trained_adapter(folder, base, kind=kind) for part, (kind, _) in PLACES.items()}
    return {part: place for part, place in found.items() if place is not None}


def add_lora(
    model: MiniChatForConditionalGeneration, lora: LoraConfig, seed: int, adapters: Mapping[str, Path] | None = None
) -> None:
    """Put trainable matrices beside those of the parts, in float32; B is zero, so that nothing changes before the first
    step.

    Under autocast their products are computed in its precision.

    `adapters`: of these parts, to go on with. Raises `SettingsError` for layers or a Q-Former that the model does not
    have, or an adapter of other settings.
    """
    quiet_bitsandbytes()
    from peft import inject_adapter_in_model

    parts = _adapted(model, lora)
    for number, (part, targets) in enumerate(_targets(parts, lora).items()):
        module = parts[part]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            inject_adapter_in_model(_peft_config(lora, targets), module, _ADAPTER)
        for layer in module.modules():
            if hasattr(layer, "lora_A"):
                layer._cast_input_dtype = _as_autocast_wants
        added = {name: weight for name, weight in module.named_parameters() if ".lora_" in name}
        for weight in added.values():
            weight.data = weight.data.float()  # PEFT makes them of the frozen matrix's dtype
            weight.requires_grad_(True)
        if adapters is not None and part in adapters:
            _go_on(added, adapters[part], lora, targets)
    model.train(model.training)


def _adapted(model: MiniChatForConditionalGeneration, lora: LoraConfig) -> dict[str, Any]:
    """Part → the module that gets the matrices. Raises `SettingsError` where there is no Q-Former."""
    if "bridge" in lora.parts and model.config.bridge_config.kind != "qformer":
        raise SettingsError("lora.parts names the bridge, but this model's has no Q-Former: leave it out.")
    return {part: model.get_submodule(PLACES[part][1].removesuffix(".")) for part in PLACES if part in lora.parts}


def _as_autocast_wants(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What PEFT does with a layer's input before its own matrices, but for the detour over float32 under autocast.

    There autocast turns it back at once; and the sum with the frozen layer's output would be a float32 one, and a copy.
    """
    return x if x is None or torch.is_autocast_enabled(x.device.type) else x.to(dtype)


_OWNERS = {"language_model": "LLM's", "bridge": "Q-Former's"}


def _targets(parts: Mapping[str, Any], lora: LoraConfig) -> dict[str, list[str]]:
    """Part → the last parts of the names of its linear layers that are meant.

    Raises `SettingsError` for a name that is of no part, and for a part of which none is named.
    """
    known = {part: _linear_names(module, part) for part, module in parts.items()}
    wanted, everywhere = set(lora.target_modules), set[str]().union(*known.values())
    if unknown := wanted - everywhere:
        raise _no_target(unknown, parts, everywhere)
    for part, names in known.items():
        if wanted and not wanted & names:
            raise _no_target(wanted, [part], names)
    return {part: sorted(wanted & names or names) for part, names in known.items()}


def _linear_names(module: Any, part: str) -> set[str]:
    output = module.get_output_embeddings() if part == "language_model" else None
    layers = module.named_modules()
    return {n.rsplit(".", 1)[-1] for n, layer in layers if isinstance(layer, nn.Linear) and layer is not output}


def _no_target(names: Collection[str], parts: Iterable[str], known: Collection[str]) -> SettingsError:
    whose = " and the ".join(_OWNERS[part] for part in parts)
    return SettingsError(
        f"lora.target_modules names {some(names)}, but the {whose} linear layers are {', '.join(sorted(known))}."
    )


def _peft_config(lora: LoraConfig, targets: list[str]) -> Any:
    from peft import LoraConfig as Peft

    return Peft(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)  # type: ignore[arg-type]


@torch.no_grad()
def _go_on(added: Mapping[str, nn.Parameter], folder: Path, lora: LoraConfig, targets: list[str]) -> None:
    """Begin with the matrices of an adapter that was trained before."""
    adapter = read_adapter(folder)
    named = {_written(name): weight for name, weight in added.items()}
    stored = {name: tuple(adapter.checkpoint.plain(name).shape) for name in adapter.checkpoint}
    spelled = {name.replace(f".{_ADAPTER}.", "."): name for name in stored}
    held = {plain: stored[name] for plain, name in spelled.items()}
    scales = {factors.scale for factors in adapter.factors.values()}
    if held != {name: tuple(weight.shape) for name, weight in named.items()} or scales != {lora.alpha / lora.rank}:
        config = adapter.config
        told = [f"rank {config.get('r')}", f"alpha {config.get('lora_alpha')}"]
        told += [f"{key} {config[key]}" for key in ("use_rslora", "rank_pattern", "alpha_pattern") if config.get(key)]
        layers = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in held})
        raise SettingsError(
            f"The model has an adapter of {', '.join(told)} and targets {layers}, but lora asks for rank {lora.rank}, "
            f"alpha {lora.alpha:g} and {targets}: ask for the same to train it on, or merge it first, with minichat "
            "export --format minichat."
        )
    for name, weight in named.items():
        weight.copy_(adapter.checkpoint[spelled[name]])


def _written(name: str) -> str:
    """What PEFT calls a matrix in an adapter's file, by its name in its part."""
    return f"base_model.model.{name}".replace(f".{_ADAPTER}.", ".")


def parted_weights(
    weights: Mapping[str, nn.Parameter],
) -> tuple[dict[str, dict[str, nn.Parameter]], dict[str, nn.Parameter]]:
    """What trains, by its names in the model → the adapters' matrices, by part and names in it, and the others."""
    adapters: dict[str, dict[str, nn.Parameter]] = {}
    others = {}
    for name, weight in weights.items():
        part = next((part for part, (_, prefix) in PLACES.items() if name.startswith(prefix)), None)
        if part is not None and ".lora_" in name:
            adapters.setdefault(part, {})[name.removeprefix(PLACES[part][1])] = weight
        else:
            others[name] = weight
    return adapters, others


def write_lora(
    folder: Path,
    adapters: Mapping[str, Mapping[str, Tensor]],
    lora: LoraConfig,
    model: MiniChatForConditionalGeneration,
) -> None:
    """Write `folder`/adapter, which `peft.PeftModel.from_pretrained(llm, …)` opens, and `folder`/adapter_qformer."""
    for part, weights in adapters.items():
        made = folder / PLACES[part][0]
        made.mkdir()
        held = {_written(name): weight.detach().float().cpu() for name, weight in weights.items()}
        entries = [Entry(name, t.nbytes, lambda t=t: t) for name, t in sorted(held.items())]  # type: ignore[misc]
        write_tensors(made, entries, ADAPTER_WEIGHTS[0])
        targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights})
        task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        settings = _peft_config(lora, targets).to_dict() | {
            "inference_mode": True,
            "task_type": task if part == "language_model" else None,
        }
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in sorted(settings.items())}
        write_json(made / ADAPTER_CONFIG, plain)


def lora_size(module: nn.Module, tokens: Callable[[str], int] = lambda name: 1) -> tuple[int, int]:
    """The parameters of an adapter, and the bytes that are kept for their gradients in all layers, at most.

    `tokens`: of which a layer of this name reads so many; by default the bytes are for one token of all. Both matrices
    keep their input in float32. (Where the part itself is in float32, layers that read the same share it.)
    """
    count, kept = 0, 0
    for name, layer in module.named_modules():
        if name.endswith(f".lora_A.{_ADAPTER}"):
            linear: Any = layer
            kept += 4 * tokens(name) * (linear.in_features + linear.out_features)
    count = sum(weight.numel() for name, weight in module.named_parameters() if ".lora_" in name)
    return count, kept


# --- The model as a run holds it: what trains in float32, the rest frozen in the precision that was asked for.


def top(part: str) -> str:
    """The part of the model that a dotted name is in."""
    return part.split(".")[0]


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name; "auto": on CUDA bfloat16, or float16 where that is emulated; float32 elsewhere.

    Raises `SettingsError` for float16 off CUDA: its small gradients need a scaler, which PyTorch has for CUDA alone.
    """
    if name == "auto":
        return half(device) if device.type == "cuda" else torch.float32
    if name == "float16" and device.type != "cuda":
        raise SettingsError(f"model.dtype is float16, which trains on CUDA alone, not on {device.type}: use bfloat16.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def open_bot(
    config: ModelConfig,
    trainable: tuple[str, ...],
    device: torch.device,
    lora: LoraConfig | None = None,
    seed: int = 0,
) -> MiniChat:
    """Load a model to train the named parts of it, and an adapter of its LLM where `lora` is given.

    A part of which anything trains is in float32 as a whole; the others are in `config.dtype`. Raises what
    `minichat.load` raises, and `SettingsError` for a part that the model does not have.
    """
    from minichat.inference.load import load

    dtype = precision(config.dtype, device)
    learning = {top(part) for part in trainable}
    wanted = {"vision_model": precision(config.vision_dtype or config.dtype, device), "bridge": dtype}
    wanted |= dict.fromkeys(learning & wanted.keys(), torch.float32)
    # All in the LLM's precision: in another, it would be in memory twice as large for a moment. And it is left as it is
    # then, so that it is trained with as it is served: some of its buffers stay in float32.
    loaded = torch.float32 if "language_model" in learning else dtype
    options: dict[str, Any] = {} if config.quantize is None else {"quantize": config.quantize}
    adapters = adapters_of(config.name)
    for part in adapters:
        # What is put back from the files below would be without it.
        if part in learning or (part == "bridge" and loaded != dtype):
            raise SettingsError(
                f"trainable names the {part if part in learning else 'language_model'}, but {config.name!r} has an "
                f"adapter of the {part}: merge it first, with minichat export --format minichat."
            )
    trains = () if lora is None else lora.parts
    kept = [part for part in adapters if part not in trains]
    bot = load(config.name, device=device, dtype=loaded, merge_adapter=kept, **options)
    model = bot.model
    set_trainable(model, trainable)
    if lora is not None:
        add_lora(model, lora, seed, adapters)
    other = {name: precise for name, precise in wanted.items() if precise != loaded}
    for name, precise in other.items():
        model.get_submodule(name).to(precise)
    if other:
        _put_back(model, config.name, other.keys())
    if config.quantize == "4bit":
        _keep_unpacked(model)
    model.bridge.register_forward_pre_hook(_as_the_bridge)
    save_memory(model, config)
    return bot


@torch.no_grad()
def _put_back(model: nn.Module, name: str, parts: Container[str]) -> None:
    """These parts' tensors as the model's own folder holds them, not as they were rounded when it was loaded."""
    from minichat.weights.checkpoint_io import read_checkpoint
    from minichat.weights.hub import is_projection, weight_files
    from minichat.weights.projection import read_projection
    from minichat.weights.registry import find

    folder = find(name)
    folder = read_projection(folder).base_folder() if is_projection(folder) else folder
    held = model.state_dict()
    for file in weight_files(folder):
        checkpoint = read_checkpoint(folder / file)
        for stored in (stored for stored in checkpoint if top(stored) in parts):
            held[stored].copy_(checkpoint[stored])


def _keep_unpacked(model: nn.Module) -> None:
    """Keep 4-bit matrices in the form that gradients pass through.

    On a CPU with AVX-512 and bfloat16, bitsandbytes 0.50 packs a matrix that is used without a gradient, as for a
    validation loss, and from then on lets none through, in silence.
    """
    from bitsandbytes.nn import modules

    for module in model.modules():
        if isinstance(module, modules.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _as_the_bridge(bridge: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Patches in the bridge's own precision; the vision encoder may be in another."""
    dtype = next((weight.dtype for weight in bridge.parameters()), inputs[0].dtype)
    return (inputs[0].to(dtype), *inputs[1:])


def save_memory(model: nn.Module, config: ModelConfig) -> None:
    """Gradient checkpointing and drop path; both are marked on layers, so they come before `model.train()`."""
    wanted = (("language_model", config.gradient_checkpointing), ("vision_model", config.vision_gradient_checkpointing))
    for name in (name for name, checkpointed in wanted if checkpointed):
        part: Any = model.get_submodule(name)
        if not getattr(part, "supports_gradient_checkpointing", False):
            raise SettingsError(f"The {name} of this model cannot be checkpointed: leave that setting out.")
        # Its name in transformers from 5.23 on, or before.
        enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.vision_drop_path_rate:
        drop_path(_blocks(model), config.vision_drop_path_rate)


def _blocks(model: nn.Module) -> nn.Module:
    """The vision encoder's blocks, each of an attention `self_attn` and an `mlp`; a DINO has others."""
    try:
        return model.get_submodule("vision_model.encoder.layers")
    except AttributeError:
        raise SettingsError("vision_drop_path_rate is not for a DINO: leave it out.") from None


def drop_path(layers: nn.Module, share: float) -> None:
    """Leave whole residual branches out while training, picture by picture (arXiv:1603.09382).

    The share rises from 0 at the first layer to `share` at the last, as in EVA's ViT.
    """
    blocks = list(layers.children())
    for depth, block in enumerate(blocks):
        rate = share * depth / max(1, len(blocks) - 1)
        for branch in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
            branch.register_forward_hook(_dropping(rate))


def _dropping(rate: float) -> Any:
    def hook(branch: nn.Module, inputs: Any, output: Any) -> Any:
        if not branch.training or rate == 0:
            return output
        hidden = output[0] if isinstance(output, tuple) else output  # (I, P, W)
        kept = torch.rand(len(hidden), 1, 1, device=hidden.device) >= rate
        hidden = hidden * (kept / (1 - rate)).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


# --- What a run leaves behind: a projection's folder, or a whole model's where more than the projection trained.
#
# What did not train is taken from the base model's files as it is stored there, whatever precision the run held it in.


_PARCEL = ".model"
_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".md")


def write_result(
    out: Path,
    base: str,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Put trained weights, by their names in the model, into the run's folder `out`, so that `minichat.load` opens it.

    `base`: the model that the run began with, which may itself be a projection. `beside`: puts what else belongs to it
    into the folder, an adapter. Raises `ModelError` where the base is
    not there any more, or the disk does not take the result.
    """
    folder = find(base)
    started = read_projection(folder) if is_projection(folder) else None
    if set(weights) == {"projection.weight", "projection.bias"}:
        tensors = {name.removeprefix("projection."): weight for name, weight in weights.items()}
        write_projection(out, tensors, started.base_name() if started else base, facts=facts, into=True, beside=beside)
        return
    changed = {name: weight.detach().float().cpu() for name, weight in weights.items()}
    if started is not None:
        folder = started.base_folder()
        changed = {f"projection.{name}": tensor for name, tensor in started.tensors().items()} | changed
    _write_model(out, folder, changed, facts, beside)


def _write_model(
    out: Path,
    base: Path,
    changed: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    beside: Callable[[Path], None] | None,
) -> None:
    from minichat.weights.checkpoint_io import Entry, write_tensors

    config = read_json(base, "config.json")
    stored = _stored(base)
    if config.get("llm") and any(top(name) == "language_model" for name in changed):
        stored |= _referred(base, config.pop("llm"))
    if unknown := sorted(set(changed) - set(stored)):
        raise ModelError(f"The base model {base.name!r} stores no {unknown[0]}: it is not the one that was trained.")
    entries = []
    for name, tensor in stored.items():
        tensor = changed.get(name, tensor)
        entries.append(Entry(name, tensor.nbytes, lambda tensor=tensor: tensor))  # type: ignore[misc]
    shutil.rmtree(out / _PARCEL, ignore_errors=True)  # left by a run that was killed here
    with new_folder(out / _PARCEL, ModelError) as made:
        for file in base.iterdir():
            if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name not in {FACTS, *OF_A_RUN}:
                shutil.copy(file, made / file.name)
        if (base / QFORMER).is_dir():
            shutil.copytree(base / QFORMER, made / QFORMER)
        write_tensors(made, entries)
        if beside is not None:
            beside(made)
        write_json(made / TRAINING, dict(facts))
        write_json(made / "config.json", config)
    unpack(out / _PARCEL, out, last="config.json")


def _stored(folder: Path) -> dict[str, Tensor]:
    from minichat.weights.checkpoint_io import read_checkpoint

    opened = [read_checkpoint(folder / file) for file in weight_files(folder, WEIGHTS)]
    return {name: checkpoint.plain(name) for checkpoint in opened for name in checkpoint}


def _referred(folder: Path, reference: dict[str, str]) -> dict[str, Tensor]:
    from minichat.weights.llm import referred_llm

    held = referred_llm(reference, folder.name).tensors()
    return {f"language_model.{name}": checkpoint.plain(name) for name, checkpoint in held.items()}


def versions() -> dict[str, str]:
    """Of the programs that a result depends on."""
    import accelerate
    import transformers

    import minichat

    return {
        "minichat": minichat.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
