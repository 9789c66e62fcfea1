"""A model taken elsewhere: its projection alone, and a BLIP-2 that needs no code of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Blip2ForConditionalGeneration

import minichat
from minichat.errors import ModelError, SettingsError
from minichat.weights.convert import convert
from minichat.weights.export import export
from minichat.weights.hub import WEIGHTS
from minichat.weights.projection import write_projection
from minichat.weights.qformer import read_stage1
from minichat.weights.registry import find
from tests import processes
from tests.published_files import arguments, publish
from tests.test_weights_adapted import adapt
from tests.tiny import noise_picture

ASK: dict[str, Any] = {"images": noise_picture(1), "max_new_tokens": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model, referring to its LLM and holding it; and one without a Q-Former."""
    folder = tmp_path_factory.mktemp("models")
    publish(folder / "files")
    publish(folder / "others", "patch_merge")
    given = arguments(folder / "files")
    return {
        "refers": convert(folder / "refers", **given),
        "holds": convert(folder / "holds", merge=True, **given),
        "merges": convert(folder / "merges", **arguments(folder / "others", "patch_merge")),
    }


def other(model: Path) -> dict[str, torch.Tensor]:
    """Another projection for a model."""
    stored = load_file(model / "model.safetensors")
    return {name: torch.randn_like(stored[f"projection.{name}"]) for name in ("weight", "bias")}


@pytest.mark.parametrize("base", ["refers", "holds", "merges"])
def test_a_projection_goes_out_and_comes_in(models: dict[str, Path], tmp_path: Path, base: str) -> None:
    tensors = other(models[base])
    first = write_projection(tmp_path / "trained", tensors, str(models[base]))
    again = export(str(first), "projection", tmp_path / "again")
    assert sorted(file.name for file in again.iterdir()) == ["minichat.json", "projection.safetensors"]
    assert load_file(again / "projection.safetensors").keys() == {"weight", "bias"}
    whole, plain = minichat.load(again, device="cpu"), minichat.load(models[base], device="cpu")
    assert whole.name == "again"
    assert torch.equal(whole.model.projection.weight, tensors["weight"])
    assert torch.equal(whole.model.projection.bias, tensors["bias"])
    frozen = plain.model.state_dict()
    changed = [name for name, tensor in whole.model.state_dict().items() if not torch.equal(tensor, frozen[name])]
    assert changed == ["projection.weight", "projection.bias"]
    same = minichat.load(export(str(models[base]), "projection", tmp_path / "same"), device="cpu")
    assert same.chat().ask("What is it?", **ASK) == plain.chat().ask("What is it?", **ASK)


def test_fingerprints_do_not_tell_whether_the_llm_is_held(models: dict[str, Path], tmp_path: Path) -> None:
    out = write_projection(tmp_path / "trained", other(models["refers"]), str(models["refers"]))
    change(out, lambda facts: facts.update(base={"path": str(models["holds"])}))
    assert minichat.load(out, device="cpu").chat().ask("What is it?", **ASK) is not None


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads((folder / "minichat.json").read_text())
    del facts["checksum"]  # as whoever makes one by hand
    edit(facts)
    (folder / "minichat.json").write_text(json.dumps(facts))


def spoil(model: Path, name: str) -> None:
    state = load_file(model / "model.safetensors")
    state[name].flatten()[0] += 1
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def test_what_does_not_belong_together_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(models["holds"], tmp_path / "base"))
    trained = write_projection(tmp_path / "trained", other(base), str(base))
    wrong: dict[str, tuple[Callable[[Path], Any], str]] = {
        "template": (
            lambda f: change(f, lambda c: c.update(template="llama2")),
            "'llama2', but its base 'base' has 'vicuna-v0'",
        ),
        "another base": (
            lambda f: change(f, lambda c: c.update(base={"path": str(models["merges"])})),
            "'vicuna-v0', .* 'llama2'",
        ),
        "no base": (
            lambda f: change(f, lambda c: c.update(base={"path": str(tmp_path / "gone")})),
            "'gone', which is not there",
        ),
        "itself": (lambda f: change(f, lambda c: c.update(base={"path": str(f)})), "is a projection itself"),
        "shape": (
            lambda f: [
                save_file({"weight": torch.ones(40, 25), "bias": torch.ones(40)}, f / "projection.safetensors"),
                change(f, lambda c: c.update(shape=[40, 25])),
            ],
            r"has the shape \(40, 25\), but its base 'base' needs \(40, 24\)",
        ),
        "tensors": (
            lambda f: save_file({"weight": torch.ones(40, 24)}, f / "projection.safetensors"),
            "projection.safetensors in .* holds",
        ),
        "NaN": (
            lambda f: save_file(
                {"weight": torch.full((40, 24), torch.nan), "bias": torch.ones(40)}, f / "projection.safetensors"
            ),
            "tensor weight in projection.safetensors .* not finite",
        ),
        "damage": (
            lambda f: (f / "projection.safetensors").write_bytes(b"x" * 50),
            "projection.safetensors in .* is damaged",
        ),
        "facts": (lambda f: (f / "minichat.json").write_text("{}"), "minichat.json in .* does not describe"),
    }
    for number, (way, (edit, message)) in enumerate(wrong.items()):
        folder = Path(shutil.copytree(trained, tmp_path / f"wrong {number}"))
        edit(folder)
        with pytest.raises(ModelError, match=message) as caught:
            minichat.load(folder, device="cpu")
        assert str(tmp_path) not in str(caught.value), way
    for part in ("vision_model.encoder.layers.0.mlp.fc1.bias", "bridge.query_tokens", "language_model.lm_head.weight"):
        spoil(base, part)
        with pytest.raises(
            ModelError, match=rf"a {part.split('.')[0]} of the fingerprint \w{{12}}, but .* is \w{{12}}"
        ):
            minichat.load(trained, device="cpu")
        spoil_back(base, models["holds"])


def spoil_back(model: Path, original: Path) -> None:
    shutil.copy(original / "model.safetensors", model / "model.safetensors")


STRANGER = """
import sys, torch
from transformers import Blip2ForConditionalGeneration
given = torch.load(sys.argv[2])
load = Blip2ForConditionalGeneration.from_pretrained
model, account = load(sys.argv[1], dtype=torch.float32, output_loading_info=True)
assert not any(account.values()), account
with torch.no_grad():
    logits = [model.eval()(pixel_values=p, input_ids=i).logits for p, i in given]
model.generate(pixel_values=given[0][0], input_ids=given[0][1], max_new_tokens=4)
assert not any(name.split(".")[0] == "minichat" for name in sys.modules)
torch.save(logits, sys.argv[3])
"""


@pytest.mark.parametrize("base", ["refers", "trained"])
def test_plain_transformers_gives_the_same_logits(models: dict[str, Path], tmp_path: Path, base: str) -> None:
    """With one and with two pictures, in a process that never imports minichat."""
    model = models.get(base) or write_projection(tmp_path / "trained", other(models["refers"]), str(models["refers"]))
    bot = minichat.load(model, device="cpu")
    session, given = minichat.Conversation(), []
    for images in ([noise_picture(1)], [noise_picture(2), noise_picture(3)]):
        prompt = bot.processor.render(session.user("What is it?", images), add_generation_prompt=True)
        batch = bot.processor.batch([prompt])
        given.append((batch["pixel_values"], batch["input_ids"]))
    torch.save(given, tmp_path / "given.pt")
    out = export(str(model), "blip2", tmp_path / "blip2")
    done = processes.python(STRANGER, tmp_path, out, tmp_path / "given.pt", tmp_path / "logits.pt")
    assert done.returncode == 0, done.stderr
    vocabulary = bot.model.config.text_config.vocab_size
    for (pixels, ids), theirs in zip(given, torch.load(tmp_path / "logits.pt"), strict=True):
        with torch.no_grad():
            ours = bot.model(input_ids=ids, pixel_values=pixels).logits
        assert theirs.shape[-1] == vocabulary + 1
        torch.testing.assert_close(theirs[..., :vocabulary], ours, rtol=0, atol=1e-4)


PROCESSED = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1])
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
given = processor(images=Image.open(sys.argv[2]), text="What is it?", return_tensors="pt")
ids = model.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1)
assert not any(name.split(".")[0] == "minichat" for name in sys.modules)
torch.save((type(processor).__name__, dict(given), ids), sys.argv[3])
"""


@pytest.mark.parametrize("name", ["refers", "minichat-tiny"])
def test_auto_processor_opens_it_and_the_greedy_ids_are_ours(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The picture stands first, where BLIP-2's processor puts it."""
    model, picture = str(models.get(name, name)), noise_picture(4)
    picture.save(tmp_path / "picture.png")
    out = export(model, "blip2", tmp_path / "blip2")
    done = processes.python(PROCESSED, tmp_path, out, tmp_path / "picture.png", tmp_path / "made.pt")
    assert done.returncode == 0, done.stderr
    kind, given, ids = torch.load(tmp_path / "made.pt")
    assert kind == "Blip2Processor"
    bot = minichat.load(model, device="cpu", dtype="float32")
    pixels = bot.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(given["pixel_values"], pixels, rtol=0, atol=1e-5)
    slots, words = bot.processor.num_image_tokens, given["input_ids"][0, bot.processor.num_image_tokens :]
    assert set(given["input_ids"][0, :slots].tolist()) == {
        json.loads((out / "config.json").read_text())["image_token_index"]
    }
    ours = torch.cat([torch.full((1, slots), bot.processor.image_token_id), words[None]], 1)
    written = bot.model.generate(input_ids=ours, pixel_values=pixels, max_new_tokens=8, do_sample=False)
    assert ids[0, -8:].tolist() == written[0, -8:].tolist()


def test_what_a_model_keeps_to_itself_goes_out_with_it(models: dict[str, Path], tmp_path: Path) -> None:
    """Its `suppress_tokens` and the slot, in the file that transformers' model reads."""
    model = Path(shutil.copytree(models["holds"], tmp_path / "model"))
    kept = [*range(3, 20)]
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"suppress_tokens": kept}))
    out = export(str(model), "blip2", tmp_path / "blip2")
    slot = json.loads((out / "config.json").read_text())["image_token_index"]
    theirs = Blip2ForConditionalGeneration.from_pretrained(out)
    assert theirs.generation_config.suppress_tokens == [*kept, slot]
    with torch.no_grad():  # a head that would say nothing else
        theirs.language_model.lm_head.weight.zero_()
        for row, token in enumerate([slot, *kept]):
            theirs.language_model.lm_head.weight[token] = (-1) ** row
    ids = torch.tensor([[slot] * theirs.config.num_query_tokens + [1]])
    given = {"pixel_values": torch.zeros(1, 3, *[theirs.config.vision_config.image_size] * 2), "input_ids": ids}
    theirs.language_model.generation_config = theirs.generation_config  # as docs/COMMANDS.md has it
    said = theirs.generate(**given, max_new_tokens=4)[0, ids.shape[1] :].tolist()
    assert said and not {*said} & {*kept, slot}


def test_blip2_needs_a_qformer(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'merges' has no Q-Former"):
        export(str(models["merges"]), "blip2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("base", ["refers", "holds", "merges"])
def test_one_folder_holds_all(models: dict[str, Path], tmp_path: Path, base: str) -> None:
    """A base, its LLM elsewhere and a trained projection become one folder that replies the same."""
    trained = write_projection(tmp_path / "trained", other(models[base]), str(models[base]))
    whole = export(str(trained), "minichat", tmp_path / "whole")
    assert "llm" not in json.loads((whole / "config.json").read_text())
    before, after = minichat.load(trained, device="cpu"), minichat.load(whole, device="cpu")
    held = after.model.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in before.model.state_dict().items())
    assert before.caption(**ASK) == after.caption(**ASK)


@pytest.mark.parametrize("base", ["refers", "holds"])
def test_an_llm_alone_is_the_one_that_was_put_in(models: dict[str, Path], tmp_path: Path, base: str) -> None:
    """Equal to the bit, as transformers loads it; and another model can be made with it."""
    out = export(str(models[base]), "llm", tmp_path / "llm")
    given = arguments(models["refers"].parent / "files")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (out, given["llm"]))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = convert(tmp_path / "again", **{**given, "llm": str(out)})
    one, other = (minichat.load(folder, device="cpu") for folder in (models[base], again))
    assert one.chat().ask("What is it?", **ASK) == other.chat().ask("What is it?", **ASK)


def test_one_folder_in_another_precision(models: dict[str, Path], tmp_path: Path) -> None:
    stored = load_file(export(str(models["refers"]), "minichat", tmp_path / "half", dtype="bfloat16") / WEIGHTS)
    kept = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert kept == {"projection.weight", "projection.bias"}
    with pytest.raises(SettingsError, match="--dtype is for --format minichat"):
        export(str(models["refers"]), "blip2", tmp_path / "other", dtype="bfloat16")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_stage_1_model_in_another_precision(tmp_path: Path, dtype: str) -> None:
    """The built-in one is stored in bfloat16, so either holds its very numbers."""
    export("minichat-tiny-stage1", "minichat", tmp_path / "out", dtype=dtype)
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}
    ours, theirs = (
        read_stage1(str(folder)).model.state_dict() for folder in (tmp_path / "out", find("minichat-tiny-stage1"))
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_its_llm_a_folder_says_the_same(models: dict[str, Path], tmp_path: Path) -> None:
    """Vision side, trained projection and adapter go into one folder, which refers to the LLM as the model did."""
    trained = write_projection(tmp_path / "trained", other(models["refers"]), str(models["refers"]))
    config = json.loads((models["refers"] / "config.json").read_text())
    adapt(Path(config["llm"]["path"]), trained / "adapter")
    out = export(str(trained), "minichat", tmp_path / "out", without_llm=True)
    assert not [name for name in load_file(out / WEIGHTS) if name.startswith("language_model.")]
    assert json.loads((out / "config.json").read_text())["llm"] == config["llm"]
    question = {"input_ids": torch.arange(3, 15)[None]}
    with torch.no_grad():
        ours, theirs = (minichat.load(m, device="cpu").model(**question).logits for m in (out, trained))
        plain = minichat.load(models["refers"], device="cpu").model(**question).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)
    with pytest.raises(ModelError, match=r"'holds' holds its LLM itself.*leave --without-llm"):
        export(str(models["holds"]), "minichat", tmp_path / "holds", without_llm=True)
    with pytest.raises(SettingsError, match=r"--without-llm is for --format minichat"):
        export(str(models["refers"]), "llm", tmp_path / "llm", without_llm=True)
