"""Name, folder or hub id → bot; and every way in which that can go wrong says what and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minichat
from minichat.errors import ModelError, SettingsError
from minichat.load import BUILT_IN, find, load
from tests.tiny import noise_picture, tiny_bot

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    bot = tiny_bot()
    bot.model.save_pretrained(folder)
    bot.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_saved_bot_says_the_same(saved: Path) -> None:
    before, after = tiny_bot(), load(saved, device="cpu")
    assert after.name == "saved"
    for bot in (before, after):
        assert bot.device == torch.device("cpu")
        assert not bot.model.training
    answers = [bot.chat(max_new_tokens=8).ask("What is it?", noise_picture(1)) for bot in (before, after)]
    assert answers[0] == answers[1]
    assert before.model.state_dict().keys() == after.model.state_dict().keys()
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name


def test_auto_classes_say_the_same(saved: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    bot = load(saved, device="cpu")
    assert minichat.MiniChat(model, processor).caption([noise_picture(1)], max_new_tokens=8) == bot.caption(
        [noise_picture(1)], max_new_tokens=8
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_precision(stored: torch.dtype, tmp_path: Path) -> None:
    bot = tiny_bot()
    bot.model.to(stored).save_pretrained(tmp_path)
    bot.processor.save_pretrained(tmp_path)
    for asked, frozen in [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ]:
        loaded = load(tmp_path, device="cpu", dtype=asked)  # type: ignore[arg-type]
        dtypes = {name: p.dtype for name, p in loaded.model.named_parameters()}
        projection = {n for n in dtypes if n.startswith("projection.")}
        assert {dtypes[n] for n in projection} == {torch.float32}
        assert {dtypes[n] for n in dtypes.keys() - projection} == {frozen}
        assert loaded.caption([noise_picture(1)], max_new_tokens=3) != [""]


def test_devices_and_dtypes_that_are_not_there(saved: Path) -> None:
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    for device in (absent, "cuda:99", "tpu", "", 3.5, "meta"):
        with pytest.raises(SettingsError, match="device"):
            load(saved, device=device)  # type: ignore[arg-type]
    for dtype in ("int8", "float64", torch.int64, 16, None):
        with pytest.raises(SettingsError, match="dtype"):
            load(saved, device="cpu", dtype=dtype)  # type: ignore[arg-type]


def test_a_name_that_is_not_known() -> None:
    for name in ("minichat-huge", "", "no/such/folder", "../nowhere", "a b"):
        with pytest.raises(ModelError, match="no known name"):
            load(name)
    with pytest.raises(ModelError, match="minichat-tiny"):
        load("tiny")


def test_a_hub_id_comes_from_the_local_cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache: models--owner--name/{refs/main, snapshots/<revision>/…}; the tests have no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--a-model"
    shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert find("someone/a-model").parent.name == "snapshots"
    assert load("someone/a-model", device="cpu").caption([noise_picture(1)], max_new_tokens=3)
    with pytest.raises(ModelError, match="not in the local cache"):
        load("someone/another")


def test_a_file_is_not_a_folder(saved: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load(saved / WEIGHTS)


def test_built_in_models_are_there_or_missed_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    for name in BUILT_IN:
        with pytest.raises(ModelError, match=name):
            find(name)
        (tmp_path / "assets" / name).mkdir(parents=True)
        assert find(name) == tmp_path / "assets" / name


@pytest.mark.parametrize(
    ("file", "named"),
    [("config.json", "config.json"), (WEIGHTS, WEIGHTS), ("processor_config.json", "processor")],
)
def test_a_missing_file_is_named(copy: Path, file: str, named: str) -> None:
    (copy / file).unlink()
    with pytest.raises(ModelError, match=named):
        load(copy, device="cpu")


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "html"])
def test_damaged_weights_are_named(copy: Path, damage: str) -> None:
    data = (copy / WEIGHTS).read_bytes()
    damaged = {
        "truncated": data[:-100],
        "header": data[:8] + b"\xff" * 50 + data[58:],
        "empty": b"",
        "html": b"<!DOCTYPE html><html>Not found</html>",
    }
    (copy / WEIGHTS).write_bytes(damaged[damage])
    with pytest.raises(ModelError, match=WEIGHTS) as caught:
        load(copy, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(copy) not in str(caught.value)


def test_a_damaged_config_is_named(copy: Path) -> None:
    for text in ("{", "[]", "\xff"):
        (copy / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ModelError, match=r"config\.json"):
            load(copy, device="cpu")


def test_another_kind_of_model_is_refused(copy: Path) -> None:
    edit_json(copy / "config.json", lambda c: c.update(model_type="llava"))
    with pytest.raises(ModelError, match="'llava'"):
        load(copy, device="cpu")


def test_a_config_that_makes_no_model_is_refused(copy: Path) -> None:
    edit_json(copy / "config.json", lambda c: c["bridge_config"].update(kind="magic"))
    with pytest.raises(ModelError, match="magic"):
        load(copy, device="cpu")


def test_every_tensor_is_accounted_for(saved: Path, tmp_path: Path) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    for number, (change, message) in enumerate(
        [
            (lambda t: t.pop(name), f"lack {name}"),
            (lambda t: t.update(extra=torch.zeros(2)), "have left over extra"),
            (lambda t: t.update({name: torch.zeros(3, 4)}), rf"{name} .* \(3, 4\).* \(64, 40\)"),
            (lambda t: t[name].index_fill_(0, torch.tensor(5), float("nan")), f"not finite, in {name}"),
            (lambda t: t["projection.bias"].fill_(float("inf")), r"not finite, in projection\.bias"),
        ]
    ):
        folder = Path(shutil.copytree(saved, tmp_path / str(number)))
        edit_weights(folder, change)
        with pytest.raises(ModelError, match=message):
            load(folder, device="cpu")


def test_a_missing_shard_is_named(copy: Path) -> None:
    bot = tiny_bot()
    (copy / WEIGHTS).unlink()
    bot.model.save_pretrained(copy, max_shard_size="100KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load(copy, device="cpu").caption([noise_picture(1)], max_new_tokens=3)
    shards[0].rename(copy / "elsewhere")
    with pytest.raises(ModelError, match=shards[0].name):
        load(copy, device="cpu")
    edit_json(copy / f"{WEIGHTS}.index.json", lambda c: c["weight_map"].update(x="../out.safetensors"))
    with pytest.raises(ModelError, match="out of their folder"):
        load(copy, device="cpu")


def test_a_pickle_is_not_opened(copy: Path) -> None:
    """Only safetensors are read: what a pickle would run, does not."""
    torch.save(load_file(copy / WEIGHTS), copy / "pytorch_model.bin")
    (copy / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=WEIGHTS):
        load(copy, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "llama2"}, "template is 'vicuna-v0' but the processor's is 'llama2'"),
        ({"num_image_tokens": 5}, "number of image tokens is 4 but the processor's is 5"),
        ({"image_token_id": 7}, "image slot's id"),
    ],
)
def test_model_and_processor_belong_together(copy: Path, change: dict[str, Any], message: str) -> None:
    edit_json(copy / "processor_config.json", lambda c: c.update(change))
    with pytest.raises(ModelError, match=message):
        load(copy, device="cpu")


def test_loading_prints_nothing_and_leaves_settings_alone(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.random.get_rng_state()
    load(saved, device="cpu")
    assert logging.get_verbosity() == before[0]
    assert logging.is_progress_bar_enabled() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert capfd.readouterr() == ("", "")
