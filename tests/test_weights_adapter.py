"""LoRA adapters as PEFT writes them: merged as PEFT merges them, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minichat.errors import ModelError
from minichat.weights.adapter import read_adapter
from minichat.weights.hub import has_adapter

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}


def llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes)).eval()  # type: ignore[arg-type]


def trained(llm: torch.nn.Module, folder: Path, **settings: object) -> dict[str, torch.Tensor]:
    """Save an adapter with random matrices to `folder`; the LLM's tensors as PEFT merges it into them."""
    torch.manual_seed(1)
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]} | settings)
    model = peft.get_peft_model(llm, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return dict(model.merge_and_unload().state_dict())


SETTINGS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 7}},
    "targets by a pattern": {"target_modules": r".*layers\.1\..*\.(v|down)_proj"},
    "a module of its own": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_merged_as_peft_merges(settings: dict[str, object], tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in llama().state_dict().items()}
    wanted = trained(llama(), tmp_path, **settings)
    adapter = read_adapter(tmp_path)
    adapter.check({name: tuple(tensor.shape) for name, tensor in before.items()})
    changed = {name for name in before if not torch.equal(before[name], wanted[name])}
    assert changed == adapter.factors.keys() | adapter.whole
    for name, tensor in before.items():
        torch.testing.assert_close(adapter.merged(name, tensor), wanted[name])


def test_of_two_patterns_that_fit_the_first_in_the_file_holds(tmp_path: Path) -> None:
    """PEFT writes them sorted, and reads them so; what it trained with may have been in another order."""
    trained(llama(), tmp_path, alpha_pattern={"q_proj": 9, r"layers\.1\..*": 7, "down_proj": 2})
    assert [*json.loads((tmp_path / "adapter_config.json").read_text())["alpha_pattern"]][1].startswith("layers")
    wanted = peft.PeftModel.from_pretrained(llama(), tmp_path).merge_and_unload().state_dict()
    adapter = read_adapter(tmp_path)
    for name, tensor in llama().state_dict().items():
        torch.testing.assert_close(adapter.merged(name, tensor), wanted[name])


def test_matrices_that_are_stored_transposed(tmp_path: Path) -> None:
    def gpt2() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=20))

    before = {name: tensor.clone() for name, tensor in gpt2().state_dict().items()}
    wanted = trained(gpt2(), tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    adapter = read_adapter(tmp_path)
    adapter.check({name: tuple(tensor.shape) for name, tensor in before.items()})
    assert adapter.factors
    for name, tensor in before.items():
        torch.testing.assert_close(adapter.merged(name, tensor), wanted[name])


def test_a_sum_is_rounded_once(tmp_path: Path) -> None:
    wanted = trained(llama(), tmp_path)
    name = next(iter(read_adapter(tmp_path).factors))
    held = llama().state_dict()[name].bfloat16()
    merged = read_adapter(tmp_path).merged(name, held)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.float(), wanted[name], atol=2e-2, rtol=2e-2)


def test_the_spelling_of_a_run_that_was_saved_whole(tmp_path: Path) -> None:
    wanted = trained(llama(), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    held = {name.replace(".weight", ".default.weight"): tensor for name, tensor in load_file(file).items()}
    save_file(held, file)
    adapter = read_adapter(tmp_path)
    for name, tensor in llama().state_dict().items():
        torch.testing.assert_close(adapter.merged(name, tensor), wanted[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"lora_alpha": None}, "lora_alpha .* is None"),
        ({"lora_alpha": "much"}, "lora_alpha .* is 'much'"),
    ],
)
def test_other_kinds_are_refused_by_name(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    trained(llama(), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(ModelError, match=message):
        read_adapter(tmp_path)


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    trained(llama(), tmp_path / "a")
    held = load_file(tmp_path / "a" / "adapter_model.safetensors")
    first = next(name for name in held if "lora_A" in name)
    for number, tensors in enumerate(
        ({n: t for n, t in held.items() if n != first}, held | {first: held[first][:-1]}, held | {"other": held[first]})
    ):
        copied = tmp_path / str(number)
        shutil.copytree(tmp_path / "a", copied)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, copied / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=r"not whole|no product|holds other"):
            read_adapter(copied)
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert has_adapter(tmp_path / "a")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        read_adapter(tmp_path / "a")


def test_an_adapter_of_another_llm_is_refused(tmp_path: Path) -> None:
    trained(llama(), tmp_path)
    adapter = read_adapter(tmp_path)
    wider = {name: tuple(t.shape) for name, t in llama(intermediate_size=32).state_dict().items()}
    with pytest.raises(ModelError, match=r"\(16, 24\).*which is \(16, 32\)"):
        adapter.check(wider)
    with pytest.raises(ModelError, match="does not have"):
        adapter.check({name: shape for name, shape in wider.items() if "layers.1" not in name})


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head", "q_proj"]}])
def test_a_tied_embedding_cannot_be_changed_alone(settings: dict[str, object], tmp_path: Path) -> None:
    """PEFT trains the output layer alone, and merges it into the embedding, too."""
    trained(llama(), tmp_path, **settings)
    shapes = {name: tuple(t.shape) for name, t in llama().state_dict().items()}
    with pytest.raises(ModelError, match="one matrix"):
        read_adapter(tmp_path).check(shapes, tied=True)
