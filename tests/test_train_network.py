"""How a run holds its model: precision, freezing, drop path; and a quantized LLM."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

import minichat
from minichat.device.placement import Placement, choose_dtype, half
from minichat.errors import SettingsError
from minichat.toy import dataset
from minichat.train.config import ModelConfig, read_config
from minichat.train.setup import drop_path, open_bot, precision
from minichat.train.trainer import train
from minichat.weights.convert import convert
from tests.published_files import arguments, publish
from tests.training import make_desk, steps_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk(tmp_path_factory.mktemp("desk"))


def dtypes(part: nn.Module) -> set[torch.dtype]:
    return {weight.dtype for weight in part.parameters()}


def test_what_trains_is_in_float32_as_it_is_stored(desk: Path) -> None:
    stored = minichat.load(desk / "model", device="cpu").model.state_dict()
    config = ModelConfig(name=str(desk / "model"), dtype="bfloat16", vision_dtype="float32")
    model = open_bot(config, ("projection", "bridge.query_tokens"), CPU).model
    assert dtypes(model.projection) == dtypes(model.bridge) == dtypes(model.vision_model) == {torch.float32}
    assert dtypes(model.language_model) == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[name].to(tensor.dtype)), name
    assert {name for name, w in model.named_parameters() if w.requires_grad} == {
        "projection.weight", "projection.bias", "bridge.query_tokens",
    }  # fmt: skip


def test_no_llm_is_loaded_in_more_than_it_is_trained_with(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 7 billion weights takes 28 GB in float32."""
    asked: list[Any] = []
    module = import_module("minichat.inference.load")
    real = module.load
    monkeypatch.setattr(module, "load", lambda *given, **more: asked.append(more["dtype"]) or real(*given, **more))
    config = ModelConfig(name=str(desk / "model"), dtype="bfloat16")
    open_bot(config, ("projection", "bridge"), CPU)
    open_bot(config, ("projection", "language_model"), CPU)
    assert asked == [torch.bfloat16, torch.float32]


def test_an_llm_whose_names_change_as_it_is_loaded_is_trained_before(tmp_path: Path) -> None:
    """A mixture of experts: transformers stacks the experts' matrices. What is read again is the model's own, not its
    LLM's."""
    publish(tmp_path / "files")
    given = arguments(tmp_path / "files")
    llm = shutil.copytree(given["llm"], tmp_path / "experts")
    for file in [*llm.glob("*.safetensors*"), *llm.glob("*.bin*")]:
        file.unlink()
    sizes = {"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = json.loads((llm / "config.json").read_text())["vocab_size"]
    mixture = MixtralConfig(vocab_size=words, num_key_value_heads=2, num_local_experts=2, **sizes)
    MixtralForCausalLM(mixture).save_pretrained(llm)
    folder = convert(tmp_path / "model", **{**given, "llm": str(llm)})
    stored = minichat.load(folder, device="cpu").model.bridge.state_dict()
    model = open_bot(ModelConfig(name=str(folder), dtype="bfloat16"), ("projection", "bridge"), CPU).model
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.bridge.state_dict().items())


def test_an_llm_is_trained_before_as_it_is_served(desk: Path) -> None:
    """To the bit, its buffers too: those of rotary positions stay in float32."""
    trained = open_bot(ModelConfig(name=str(desk / "model"), dtype="bfloat16"), ("projection",), CPU).model
    served = minichat.load(desk / "model", device="cpu", dtype="bfloat16").model
    ours, theirs = (dict(model.language_model.named_buffers()) for model in (trained, served))
    assert any(name.endswith("inv_freq") for name in theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_before_a_quantized_llm_the_bridge_begins_as_it_is_stored(desk: Path) -> None:
    pytest.importorskip("bitsandbytes")
    stored = minichat.load(desk / "model", device="cpu").model.bridge.state_dict()
    config = ModelConfig(name=str(desk / "model"), dtype="bfloat16", quantize="8bit")
    for name, tensor in open_bot(config, ("projection", "bridge"), CPU).model.bridge.state_dict().items():
        assert torch.equal(tensor, stored[name]), name


def test_the_projection_alone_leaves_the_rest_in_the_precision_asked_for(desk: Path) -> None:
    model = open_bot(ModelConfig(name=str(desk / "model"), dtype="bfloat16"), ("projection",), CPU).model
    assert dtypes(model.projection) == {torch.float32}
    assert dtypes(model.bridge) == dtypes(model.vision_model) == dtypes(model.language_model) == {torch.bfloat16}


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float16(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4, of which PyTorch says that it has bfloat16: as a run's precision, as it is loaded, and in 4 bits."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    gpu, expected = torch.device("cuda"), torch.bfloat16 if native else torch.float16
    assert precision("auto", gpu) == choose_dtype("auto", gpu) == half(gpu) == expected
    assert (half(CPU), half(torch.device("mps"))) == (torch.bfloat16, torch.float16)
    asked: list[torch.dtype] = []
    monkeypatch.setattr("minichat.device.placement.settings", lambda network, bits, compute: asked.append(compute))
    config = minichat.load("minichat-tiny", device="cpu").model.config
    Placement(gpu, expected, "4bit").options(config)
    assert asked == [expected]


def test_float16_needs_a_scaler() -> None:
    assert precision("auto", CPU) == torch.float32
    assert precision("float16", torch.device("cuda")) == torch.float16
    with pytest.raises(SettingsError, match="use bfloat16"):
        precision("float16", CPU)


class Branch(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(hidden)


class Pair(nn.Module):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.ones_like(hidden), None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Pair(), Branch()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.self_attn(hidden)[0]
        return hidden + self.mlp(hidden)


def test_drop_path_leaves_out_whole_branches_more_often_with_depth() -> None:
    layers = nn.ModuleList(Block() for _ in range(3))
    drop_path(layers, 0.5)
    torch.manual_seed(0)
    many = torch.zeros(4000, 2, 3)
    for depth, rate in enumerate((0.0, 0.25, 0.5)):
        out = layers[depth](many) - many
        assert (out == out[:, :1, :1]).all()  # picture by picture
        kept = [2.0] if rate == 0 else [0.0, 1 / (1 - rate), 2 / (1 - rate)]
        assert out.unique().tolist() == pytest.approx(kept)
        assert out.mean().item() == pytest.approx(2, rel=0.05)  # what is kept makes up for what is not
        assert (out[:, 0, 0] == 0).float().mean().item() == pytest.approx(rate**2, abs=0.03)
    layers.eval()
    assert (layers[2](many) == 2).all()


# --- a quantized LLM


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a short run of the built-in model, whose matrices are no random numbers."""
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder / "scenes", 4, style="storybook")  # what it knows by heart would have hardly a gradient
    (folder / "train.yaml").write_text("run: {epochs: 1, batch_size: 2}\nreport: {pictures: 0, tensorboard: false}\n")
    talks = folder / "scenes" / "conversations.jsonl"
    return [
        str(folder / "train.yaml"), f"data.train={talks}", f"data.validation={talks}", "run.validate_every=1",
        "model.device=cpu", "model.dtype=bfloat16", f"data.feature_cache={folder / 'features'}", "optimizer.lr=1e-5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def exact(scenes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "run"
    train(read_config(scenes[0], [*scenes[1:], f"out={out}"]))
    return out


@pytest.mark.parametrize(("quantize", "close"), [("8bit", 0.05), ("4bit", 0.25)])
def test_against_a_quantized_llm_losses_are_close_to_bfloat16s(
    quantize: str, close: float, scenes: list[str], exact: Path, tmp_path: Path
) -> None:
    """Losses and gradients, also after passes without a gradient, such as validation. The rate is so low that both go
    the same way."""
    train(read_config(scenes[0], [*scenes[1:], f"out={tmp_path / 'run'}", f"model.quantize={quantize}"]))
    ours, theirs = (steps_of(out) for out in (tmp_path / "run", exact))
    assert len(ours) == 2
    losses, norms = (
        [torch.tensor([line[name] for line in lines]) for lines in (ours, theirs)] for name in ("loss", "grad_norm")
    )
    torch.testing.assert_close(*losses, rtol=close, atol=close * 0.05)
    assert not torch.equal(*losses)
    ratio = norms[0] / norms[1]
    assert ratio.min() > 0.4
    assert ratio.max() < 2.5
    chat = minichat.load(tmp_path / "run", device="cpu", quantize=quantize).chat(max_new_tokens=4)
    assert chat.ask("Hello.")
