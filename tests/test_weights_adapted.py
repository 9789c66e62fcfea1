"""An LLM with a LoRA adapter beside it, or a folder with the adapter alone: what is loaded is what PEFT merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import minichat
from minichat.errors import ModelError
from minichat.weights.convert import convert
from tests.published_files import LLM, arguments, publish

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 16},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
    "a module of its own": {"modules_to_save": ["lm_head"]},
}


def adapt(folder: Path, out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write a random adapter of the LLM in `folder` to `out`; the tensors that PEFT merges it into."""
    from transformers import AutoModelForCausalLM

    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(**given))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.2)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    return dict(model.merge_and_unload().state_dict())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    publish(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [False, True], ids=["beside the LLM", "alone"])
def test_the_llm_is_what_peft_merges(published: Path, tmp_path: Path, kind: str, alone: bool) -> None:
    files = Path(shutil.copytree(published, tmp_path / "files"))
    out = files / "adapter" if alone else files / LLM
    wanted = adapt(files / LLM, out, **KINDS[kind])
    said: list[str] = []
    for merge in (False, True):
        given = {**arguments(files), "llm": str(out), "merge": merge}
        made = convert(tmp_path / f"out{merge}", progress=said.append, **given)
        loaded = minichat.load(made, device="cpu").model.language_model.state_dict()
        assert loaded.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(loaded[name], tensor, atol=1e-6, rtol=1e-5)
        record = json.loads((made / "conversion.json").read_text())["adapter"]
        assert record["folder"] == out.name
        assert "model.layers.0.self_attn.q_proj.weight" in record["changes"]
    assert said.count(f"Adding the LoRA adapter {out.name!r} to the LLM") == 2


def test_an_adapter_that_changed_is_another_llm(published: Path, tmp_path: Path) -> None:
    files = Path(shutil.copytree(published, tmp_path / "files"))
    adapt(files / LLM, files / LLM)
    out = convert(tmp_path / "out", **arguments(files))
    file = files / LLM / "adapter_model.safetensors"
    held = load_file(file)
    next(iter(held.values()))[0, 0] += 1
    save_file(held, file)
    with pytest.raises(ModelError, match="of the fingerprint"):
        minichat.load(out, device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"use_dora": True}, "use_dora True"), ({"bias": "all"}, "bias 'all'")],
    ids=str,
)
def test_what_is_no_sum_is_refused(published: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    files = Path(shutil.copytree(published, tmp_path / "files"))
    adapt(files / LLM, files / LLM, **settings)
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "out", **arguments(files))


def test_an_adapter_without_its_llm_is_refused(published: Path, tmp_path: Path) -> None:
    adapt(published / LLM, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    for base, message in ((None, "names no base_model_name_or_path"), ("no/such", "cannot be used")):
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))
        with pytest.raises(ModelError, match=f"'adapter' holds an adapter alone.*{message}"):
            convert(tmp_path / "out", **{**arguments(published), "llm": str(tmp_path / "adapter")})
