"""LoRA beside the LLM: what trains is a plain PEFT adapter, the rest is frozen, what is trained is what is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import minichat
from minichat.device.memory import training_needs
from minichat.errors import SettingsError
from minichat.prompt.conversation import Conversation
from minichat.train.setup import lora_size, open_bot
from minichat.train.stages.finetune import Finetune
from minichat.train.trainer import make_accelerator, train
from minichat.weights.export import export
from minichat.weights.projection import vision_source
from tests.tiny import noise_picture
from tests.tiny_network import SIDE
from tests.training import at_step, checkpoints, config_of, losses, make_desk, run, same, turn_a_bit

LORA = ("lora.rank=3", "lora.alpha=5", "lora.dropout=0.2", "lora.target_modules=[q_proj,down_proj]")
FEW = ("run.epochs=null", "run.max_steps=6", "run.save_every=1")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"), samples=8)


@pytest.fixture(scope="module")
def whole(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run's result."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(desk, f"out={out}", *FEW, *LORA)
    return out


def ids() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(3, 300, (2, 12))


def logits(folder: Path | str, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return minichat.load(folder, **options).model.language_model(ids()).logits  # type: ignore[arg-type]


def test_the_adapter_and_the_projection_train_and_nothing_else(desk: Path, whole: Path) -> None:
    learned = {name for name in checkpoints(whole)[6] if not name.startswith("optimizer.")}
    assert learned == {"projection.weight", "projection.bias"} | {
        f"language_model.model.layers.{layer}.{part}.lora_{factor}.default.weight"
        for layer in range(2)
        for part in ("self_attn.q_proj", "mlp.down_proj")
        for factor in "AB"
    }
    assert {file.name for file in (whole / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    base, held = load_file(desk / "model" / "model.safetensors"), minichat.load(whole, merge_adapter=False).model
    for name, tensor in held.state_dict().items():
        if not name.startswith("projection."):
            assert torch.equal(tensor, base[name].float()), name
    assert not torch.equal(logits(whole), logits(whole, merge_adapter=False))


@pytest.mark.parametrize("autocast", [True, False])
def test_beside_a_bfloat16_llm(autocast: bool, desk: Path) -> None:
    """Its own matrices stay float32. Under autocast, as in a run, their products are as precise as the frozen ones."""
    seen: list[tuple[torch.dtype, ...]] = []

    def gradients(dtype: str, autocast: bool) -> torch.Tensor:
        config = config_of(desk, *LORA[:2], f"model.dtype={dtype}")
        llm = open_bot(config.model, (), torch.device("cpu"), config.lora).model.language_model
        added = {name: weight for name, weight in llm.named_parameters() if ".lora_" in name}
        for number, weight in enumerate(added.values()):
            torch.manual_seed(number)
            weight.data = 0.1 * torch.randn_like(weight)
        for name, module in llm.named_modules():
            if name.endswith("lora_A.default"):
                module.register_forward_hook(lambda _, given, out: seen.append((given[0].dtype, out.dtype)))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = llm(ids()).logits
        logits.float().log_softmax(-1)[..., 5].sum().backward()
        assert {weight.dtype for weight in added.values()} == {torch.float32}
        return torch.cat([weight.grad.flatten() for weight in added.values()])  # type: ignore[union-attr]

    config = config_of(desk, *LORA[:2], "model.dtype=bfloat16")
    assert make_accelerator(config, ("projection",), desk / "run").mixed_precision == "bf16"
    exact, ours = gradients("float32", False), gradients("bfloat16", autocast)
    assert 0 < (ours - exact).norm() < 0.1 * exact.norm()
    assert set(seen[len(seen) // 2 :]) == {(torch.bfloat16 if autocast else torch.float32,) * 2}


def test_it_loads_in_plain_peft(whole: Path, tmp_path: Path) -> None:
    export(str(minichat_base(whole)), "llm", tmp_path / "llm")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, whole / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids()).logits, logits(whole), atol=1e-4, rtol=1e-4)


def minichat_base(folder: Path) -> Path:
    return Path(json.loads((folder / "minichat.json").read_text())["base"]["path"])


def test_what_is_trained_is_what_is_served(desk: Path, whole: Path) -> None:
    config = config_of(desk, *LORA, f"model.name={whole}")
    held = open_bot(config.model, ("projection",), torch.device("cpu"), config.lora).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(held.language_model(ids()).logits, logits(whole), atol=1e-4, rtol=1e-4)


def test_a_run_that_was_stopped_goes_on_to_the_bit(desk: Path, whole: Path, tmp_path: Path) -> None:
    config = config_of(desk, f"out={tmp_path / 'run'}", *FEW, *LORA)
    assert train(config, say=at_step(3, 15)).signal == 15
    assert train(config, resume=True).step == 6
    assert losses(tmp_path / "run") == losses(whole)
    assert same(checkpoints(tmp_path / "run")[6], checkpoints(whole)[6])
    # The file's header may list what it records beside the tensors in any order.
    ours, theirs = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (tmp_path / "run", whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_is_trained_on_or_stays_as_it_is(desk: Path, whole: Path, tmp_path: Path) -> None:
    one = ("run.epochs=null", "run.max_steps=1", f"model.name={whole}")
    run(desk, f"out={tmp_path / 'on'}", *one, *LORA)
    run(desk, f"out={tmp_path / 'beside'}", *one)
    before, on, beside = (
        load_file(out / "adapter" / "adapter_model.safetensors")
        for out in (whole, tmp_path / "on", tmp_path / "beside")
    )
    assert same(beside, before)
    assert on.keys() == before.keys()
    assert not same(on, before)
    # One step at most of the rate away from where it began.
    assert all((on[name] - before[name]).abs().max() < 0.05 for name in on)
    assert not torch.equal(logits(tmp_path / "beside"), logits(tmp_path / "beside", merge_adapter=False))


def test_other_settings_than_the_adapters_are_refused(desk: Path, whole: Path, tmp_path: Path) -> None:
    for other in ("lora.rank=4", "lora.alpha=6", "lora.target_modules=[q_proj]"):
        with pytest.raises(SettingsError, match=r"rank 3, alpha 5.* and targets \['down_proj', 'q_proj'\]"):
            run(desk, f"out={tmp_path / other[:9]}", f"model.name={whole}", *LORA, other)


@pytest.mark.parametrize("key", ["use_rslora", "alpha_pattern"])
def test_an_adapter_of_other_scales_is_not_trained_on(key: str, desk: Path, whole: Path, tmp_path: Path) -> None:
    """Its matrices have the shapes that are asked for, and are added otherwise than the run would add them."""
    shutil.copytree(whole, tmp_path / "scaled")
    file = tmp_path / "scaled" / "adapter" / "adapter_config.json"
    other = {"use_rslora": True, "alpha_pattern": {"q_proj": 9}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: other[key]}))
    with pytest.raises(SettingsError, match=rf"rank 3, alpha 5[.0]*, {key} "):
        run(desk, f"out={tmp_path / 'run'}", f"model.name={tmp_path / 'scaled'}", *LORA)


def test_it_is_merged_on_request(whole: Path, tmp_path: Path) -> None:
    export(str(whole), "minichat", tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(whole), atol=1e-4, rtol=1e-4)
    export(str(whole), "projection", tmp_path / "apart")
    assert torch.equal(logits(tmp_path / "apart"), logits(whole))
    export(str(whole), "projection", tmp_path / "half", dtype="bfloat16")
    held, stored = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (whole, tmp_path / "half"))
    assert stored.keys() == held.keys()
    assert all(torch.equal(stored[name], held[name].bfloat16()) for name in held)
    torch.testing.assert_close(logits(tmp_path / "half"), logits(whole), atol=0.05, rtol=0.05)


@pytest.fixture(scope="module")
def named(desk: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, in another place than where the runs had it, with two adapters by name and one as PEFT writes it."""
    folder = tmp_path_factory.mktemp("named")
    model = folder / "model"
    shutil.copytree(desk / "model", model)
    other = ("lora.rank=2", "lora.alpha=9", "lora.target_modules=[q_proj,v_proj]", "seed=1")
    run(desk, f"out={folder / 'other'}", *FEW, *other)
    for name, out in (("first", whole), ("second", folder / "other")):
        export(str(out), "projection", model / "adapters" / name)
        facts = json.loads((model / "adapters" / name / "minichat.json").read_text())
        facts["base"]["path"] = str(folder / "gone")
        (model / "adapters" / name / "minichat.json").write_text(json.dumps(facts))
    export(str(model), "projection", model / "adapters" / "plain", adapter=whole / "adapter")
    return model


def test_adapters_by_name_are_swapped(named: Path, whole: Path, tmp_path: Path) -> None:
    """To the bit what loading each alone gives, also for a chat that goes on; each is saved with its own alpha."""
    ask, stored = {"max_new_tokens": 5}, (named / "model.safetensors").read_bytes()
    bot = minichat.load(named)
    assert bot.adapters is not None
    assert list(bot.adapters) == ["first", "plain", "second"]
    chat = bot.chat(**ask)
    chat.ask("Hello.", [noise_picture(1)])
    plain = bot.model.state_dict()
    plain = {name: tensor.clone() for name, tensor in plain.items()}
    for name in ("first", "second", "plain", None, "second"):
        bot.adapters.use(name)
        alone = minichat.load(named if name is None else named / "adapters" / name)
        assert same(dict(bot.model.state_dict()), dict(alone.model.state_dict())), name
        fresh = alone.chat(conversation=Conversation(chat.conversation.messages), **ask)
        assert chat.ask("And?") == fresh.ask("And?"), name
    assert not same(dict(bot.model.state_dict()), plain)
    assert (named / "model.safetensors").read_bytes() == stored
    bot.adapters.use(whole)
    with torch.no_grad():
        assert torch.equal(bot.model.language_model(ids()).logits, logits(whole))
    for name, alpha in (("first", 5), ("second", 9)):
        export(str(named / "adapters" / name), "projection", tmp_path / name)
        assert json.loads((tmp_path / name / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == alpha
        export(str(named / "adapters" / name), "minichat", tmp_path / f"{name}-merged")
        wanted = logits(named / "adapters" / name)
        torch.testing.assert_close(logits(tmp_path / f"{name}-merged"), wanted, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_swapped_changes_nothing(named: Path, whole: Path, tmp_path: Path) -> None:
    bot = minichat.load(named / "adapters" / "first")
    adapters = bot.adapters
    assert adapters is not None
    before = {name: tensor.clone() for name, tensor in bot.model.state_dict().items()}
    other = make_desk(tmp_path / "other", samples=4) / "model"
    strange = minichat.load(other).model
    torch.nn.init.normal_(strange.language_model.lm_head.weight)
    strange.save_pretrained(other)
    export(str(other), "projection", tmp_path / "strange")
    shutil.copytree(whole, tmp_path / "cut")
    turn_a_bit(tmp_path / "cut" / "adapter" / "adapter_model.safetensors")
    wrong = {
        "third": r"has no adapter 'third' \(first, plain, second\)",
        str(tmp_path / "strange"): "do not belong together",
        str(tmp_path / "cut"): "adapter_model",
    }
    for name, why in wrong.items():
        with pytest.raises(minichat.MiniChatError, match=why):
            adapters.use(name)
    assert same(dict(bot.model.state_dict()), before)
    assert minichat.load(named, merge_adapter=False).adapters is None


EYES = ("lora.parts=[language_model,bridge]", "lora.target_modules=[q_proj,query,dense]", *LORA[:2])


@pytest.fixture(scope="module")
def eyes(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with adapters of the LLM and of the Q-Former."""
    out = tmp_path_factory.mktemp("eyes") / "run"
    run(desk, f"out={out}", *FEW, *EYES)
    return out


def seen(folder: Path, **options: object) -> torch.Tensor:
    return minichat.load(folder, **options).encode([noise_picture(3)])  # type: ignore[arg-type]


def test_a_qformers_adapter_is_one_of_peft_and_all_else_is_frozen(desk: Path, eyes: Path, tmp_path: Path) -> None:
    learned = {name for name in checkpoints(eyes)[6] if not name.startswith(("optimizer.", "projection."))}
    assert {name.split(".")[0] for name in learned} == {"language_model", "bridge"}
    assert all(".lora_" in name for name in learned)
    base, held = load_file(desk / "model" / "model.safetensors"), minichat.load(eyes, merge_adapter=False)
    for name, tensor in held.model.state_dict().items():
        assert name.startswith("projection.") or torch.equal(tensor, base[name].float()), name
    merged = seen(eyes)
    assert not torch.allclose(merged, held.encode([noise_picture(3)]), atol=1e-4)
    bridge = held.model.bridge
    bridge.qformer = peft.PeftModel.from_pretrained(bridge.qformer, eyes / "adapter_qformer").eval()
    torch.testing.assert_close(held.encode([noise_picture(3)]), merged, atol=1e-4, rtol=1e-4)
    for form in ("projection", "minichat"):
        export(str(eyes), form, tmp_path / form)
        torch.testing.assert_close(seen(tmp_path / form), merged, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits(tmp_path / form), logits(eyes), atol=1e-4, rtol=1e-4)
    assert not (tmp_path / "minichat" / "adapter_qformer").exists()
    bot = minichat.load(desk / "model")
    assert bot.adapters is not None
    bot.adapters.use(eyes)
    assert torch.equal(bot.encode([noise_picture(3)]), merged)
    bot.adapters.use(None)
    assert torch.equal(bot.encode([noise_picture(3)]), seen(desk / "model"))


def test_with_a_qformers_adapter_a_run_goes_on_to_the_bit(desk: Path, eyes: Path, tmp_path: Path) -> None:
    config = config_of(desk, f"out={tmp_path / 'run'}", *FEW, *EYES)
    assert train(config, say=at_step(3, 15)).signal == 15
    assert train(config, resume=True).step == 6
    assert losses(tmp_path / "run") == losses(eyes)
    assert same(checkpoints(tmp_path / "run")[6], checkpoints(eyes)[6])
    before = torch.cat([seen(eyes).flatten(), logits(eyes).flatten()])
    assert torch.equal(torch.cat([seen(tmp_path / "run").flatten(), logits(tmp_path / "run").flatten()]), before)
    # Trained on, alone, beside the LLM's, which stays.
    alone = ("lora.parts=[bridge]", "lora.target_modules=[query,dense]", *LORA[:2])
    run(desk, f"out={tmp_path / 'on'}", "run.epochs=null", "run.max_steps=1", f"model.name={eyes}", *alone)
    assert torch.equal(logits(tmp_path / "on"), logits(eyes))
    assert not torch.equal(seen(tmp_path / "on"), seen(eyes))
    torch.testing.assert_close(seen(tmp_path / "on"), seen(eyes), atol=0.5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memory_of_a_qformers_adapter_is_counted(desk: Path, dtype: str) -> None:
    config = config_of(desk, "lora.parts=[bridge]", f"model.dtype={dtype}")
    stage = Finetune(config, torch.device("cpu"))
    bridge = stage.model.train().bridge
    weights = {weight.untyped_storage().data_ptr() for weight in bridge.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    patches = stage.model.encode_patches(torch.randn(8, 3, SIDE, SIDE).to(getattr(torch, dtype)))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        bridge(patches)
    held = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    counted = stage._qformer_lora()[1] * 8
    assert 0.5 * counted < held < 1.1 * counted, held / counted
    without = Finetune(config_of(desk, f"model.dtype={dtype}"), torch.device("cpu")).memory(8, 64)
    assert (stage.memory(8, 64) or 0) > (without or 0) + counted


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_it_trains_beside_a_quantized_llm(bits: str, desk: Path, tmp_path: Path) -> None:
    """QLoRA: what trains is an adapter as any other, resumed to the bit, and merged in the precision of the files."""
    few = ("run.epochs=null", "run.max_steps=4", "run.save_every=1", f"model.quantize={bits}", *LORA)
    run(desk, f"out={tmp_path / 'whole'}", *few)
    config = config_of(desk, f"out={tmp_path / 'run'}", *few)
    assert train(config, say=at_step(2, 15)).signal == 15
    assert train(config, resume=True).step == 4
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert same(checkpoints(tmp_path / "run")[4], checkpoints(tmp_path / "whole")[4])
    held = load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in held.values())
    export(str(minichat_base(tmp_path / "whole")), "llm", tmp_path / "llm")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "whole" / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids()).logits, logits(tmp_path / "whole"), atol=1e-4, rtol=1e-4)
    served = minichat.load(tmp_path / "whole", device="cpu", quantize=bits)
    assert served.adapters is not None
    with pytest.raises(SettingsError, match="quantized"):
        served.adapters.use(None)


def test_other_parts_train_beside_it(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(desk, f"out={out}", "run.epochs=null", "run.max_steps=2", *LORA, "trainable=[projection,bridge]")
    assert (out / "config.json").exists()
    assert not torch.equal(logits(out), logits(out, merge_adapter=False))
    shutil.copytree(out, tmp_path / "copied")
    assert torch.equal(logits(tmp_path / "copied"), logits(out))


def test_a_model_with_a_qformers_adapter_is_merged_before_it_is_built_on(
    desk: Path, eyes: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"trainable names the bridge, .* has an adapter of the bridge: merge it"):
        run(desk, f"out={tmp_path / 'run'}", f"model.name={eyes}", "trainable=[bridge]")
    with pytest.raises(minichat.MiniChatError, match="Q-Former of 'run' has an adapter: merge it first"):
        vision_source(str(eyes))


def test_a_damaged_adapter_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "cut")
    file = tmp_path / "cut" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(minichat.MiniChatError, match="adapter_model"):
        minichat.load(tmp_path / "cut")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainable=[projection,language_model]"], "lora trains beside a frozen language_model"),
        (
            ["lora.target_modules=[query]"],
            r"lora\.target_modules names query, but the LLM's linear layers are down_proj, gate_proj",
        ),
        (["lora.rank=0"], r"lora\.rank is 0"),
        (["lora.dropout=1"], r"lora\.dropout is 1"),
        (["stage=qformer"], "lora is for the stage finetune"),
        (["lora.parts=[]"], r"lora\.parts is \[\]"),
        (["lora.parts=[bridge]", "lora.target_modules=[q_proj]"], "names q_proj, but the Q-Former's linear layers are"),
        ([EYES[0], "lora.target_modules=[q_proj]"], "names q_proj, but the Q-Former's linear layers are"),
        (
            [EYES[0], "lora.target_modules=[q_proj,query,keys]"],
            "names keys, but the LLM's and the Q-Former's linear layers are",
        ),
        (["lora.parts=[bridge]", "trainable=[bridge]"], "lora trains beside a frozen bridge"),
        (["lora.parts=[bridge]", "data.feature_cache=kept"], r"data\.feature_cache keeps .* but bridge trains"),
    ],
)
def test_what_cannot_be_is_refused(desk: Path, settings: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        train(config_of(desk, f"out={tmp_path / 'run'}", *LORA, *settings))


def test_the_llm_of_a_model_with_an_adapter_does_not_train(desk: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="merge it first"):
        run(desk, f"out={tmp_path / 'run'}", f"model.name={whole}", "trainable=[language_model]")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_memory_is_counted(desk: Path, dtype: str) -> None:
    """What autograd keeps of a batch is what is computed for it, or less where layers share what they read."""
    config = config_of(desk, "lora.rank=3", f"model.dtype={dtype}")
    network = open_bot(config.model, ("projection",), torch.device("cpu"), config.lora).model.train()
    llm = network.language_model
    weights = {weight.untyped_storage().data_ptr() for weight in llm.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    width = network.config.text_config.hidden_size
    embeds = torch.randn(2, 64, width, dtype=getattr(torch, dtype), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        llm.model(inputs_embeds=embeds, use_cache=False)
    held = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    needed = training_needs(network.config, 2, 64, False, dtype=dtype, adapter=lora_size(llm))
    assert held < needed.activations * 1.1
    assert held > needed.activations * 0.6
    count = sum(weight.numel() for name, weight in llm.named_parameters() if ".lora_" in name)
    without = training_needs(network.config, 2, 64, False, dtype=dtype)
    assert needed.optimizer - without.optimizer == 3 * 4 * count
