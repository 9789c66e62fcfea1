"""Published files in: what comes out is the same network, and what does not belong together is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import minichat
from minichat.errors import MiniChatError, ModelError, SettingsError
from minichat.model import MiniChatForConditionalGeneration
from minichat.weights import checkpoint_io
from minichat.weights.convert import convert
from tests.published_files import LLM, PROJECTION, QFORMER, VIT, arguments, publish, publish_blip2
from tests.tiny import noise_picture, tiny_bot, tokenizer_model

KINDS = ("qformer", "patch_merge")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp("published") / kind for kind in KINDS}
    for kind, folder in folders.items():
        publish(folder, kind)
    return folders


@pytest.fixture
def files(published: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the files with a Q-Former, to be spoilt."""
    return Path(shutil.copytree(published["qformer"], tmp_path / "files"))


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_network_comes_out(published: dict[str, Path], tmp_path: Path, kind: str, merge: bool) -> None:
    out = convert(tmp_path / "out", merge=merge, **arguments(published[kind], kind))
    before, after = publish(tmp_path / "again", kind), minichat.load(out, device="cpu")
    ours, theirs = after.model.state_dict(), before.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ask = {"images": noise_picture(1), "max_new_tokens": 8}
    assert after.chat().ask("What is it?", **ask) == before.chat().ask("What is it?", **ask)
    held = load_file(out / "model.safetensors")
    assert any(name.startswith("language_model.") for name in held) == merge
    assert (out / "tokenizer.model").read_bytes() == tokenizer_model()
    assert after.model.generation_config.eos_token_id == 2
    record = json.loads((out / "conversion.json").read_text())
    assert "head.weight" in record["known_to_be_unused"][VIT]
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o666 & ~_umask()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_hugging_face_blip2_gives_the_vision_side(published: dict[str, Path], tmp_path: Path) -> None:
    """Only the shards that hold it are opened; the same network comes out as from the originals' files."""
    bot = publish(tmp_path / "files")
    for file in publish_blip2(bot, tmp_path / "blip2"):
        (tmp_path / "blip2" / file).unlink()
    given = {**arguments(tmp_path / "files"), "vit": None, "qformer": None, "blip2": str(tmp_path / "blip2")}
    out = minichat.load(convert(tmp_path / "out", **given), device="cpu")
    assert all(torch.equal(t, out.model.state_dict()[n]) for n, t in bot.model.state_dict().items())
    gone = min((tmp_path / "blip2").glob("model-*.safetensors"))
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        convert(tmp_path / "other", **given)


def test_the_vision_encoder_alone_from_a_hugging_face_blip2(tmp_path: Path) -> None:
    """For patches that are joined: ln_vision is then an identity, whatever the BLIP-2 holds."""
    bot = publish(tmp_path / "files", "patch_merge")
    publish_blip2(bot, tmp_path / "blip2")
    given = {**arguments(tmp_path / "files", "patch_merge"), "vit": None, "blip2": str(tmp_path / "blip2")}
    with pytest.raises(ModelError, match="takes features of width 128, but query_tokens"):
        convert(tmp_path / "out", **given)
    out = minichat.load(convert(tmp_path / "out", bridge="patch_merge", **given), device="cpu")
    assert all(torch.equal(t, out.model.state_dict()[n]) for n, t in bot.model.state_dict().items())
    with pytest.raises(SettingsError, match=r"--qformer contradicts the bridge .patch_merge. \(--no-qformer\)"):
        convert(tmp_path / "other", bridge="patch_merge", **{**given, "qformer": tmp_path / "files" / QFORMER})


LORA = "llama_model.base_model.model.model.layers.{}.self_attn.q_proj.lora_{}{}.weight"


def with_lora(files: Path, spelled: str = "", alpha: float | None = 3.0) -> dict[str, torch.Tensor]:
    """Put LoRA matrices into what the run saved, as MiniGPT-v2's does; what they add to the LLM."""
    torch.manual_seed(0)
    added, matrices = {}, {}
    for layer in range(2):
        a, b = torch.randn(5, 40), torch.randn(40, 5)
        matrices |= {LORA.format(layer, "A", spelled): a, LORA.format(layer, "B", spelled): b}
        added[f"language_model.model.layers.{layer}.self_attn.q_proj.weight"] = (alpha or 3.0) / 5 * b @ a
    edit(files / PROJECTION, lambda c: c["model"].update(matrices))
    edit(files / PROJECTION, lambda c: c["config"]["model"].update({} if alpha is None else {"lora_alpha": alpha}))
    return added


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("spelled", ["", ".default"])
def test_lora_of_minigpt_v2(files: Path, tmp_path: Path, spelled: str, merge: bool) -> None:
    """In either spelling, kept as an adapter that plain PEFT opens, or merged."""
    before = minichat.load(convert(tmp_path / "before", **arguments(files)), device="cpu").model.state_dict()
    added = with_lora(files, spelled)
    out = convert(tmp_path / "out", merge=merge, **arguments(files))
    for name, tensor in minichat.load(out, device="cpu").model.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + added.get(name, 0), atol=1e-5, rtol=0)
    assert (out / "adapter").is_dir() != merge
    if not merge:
        llm = AutoModelForCausalLM.from_pretrained(files / LLM)
        merged = peft.PeftModel.from_pretrained(llm, out / "adapter").merge_and_unload().state_dict()
        for name, tensor in added.items():
            own = name.removeprefix("language_model.")
            torch.testing.assert_close(merged[own], before[name] + tensor, atol=1e-5, rtol=0)


def test_lora_that_cannot_be_read_is_told(files: Path, tmp_path: Path) -> None:
    added = with_lora(files, alpha=None)
    with pytest.raises(SettingsError, match="--lora-alpha"):
        convert(tmp_path / "out", **arguments(files))
    out = minichat.load(convert(tmp_path / "told", lora_alpha=3, **arguments(files)), device="cpu").model.state_dict()
    name = next(iter(added))
    before = load_file(files / LLM / "model.safetensors")[name.removeprefix("language_model.")]
    torch.testing.assert_close(out[name], before + added[name], atol=1e-5, rtol=0)
    with_lora(files, ".default")
    with pytest.raises(ModelError, match="both spellings"):
        convert(tmp_path / "out", **arguments(files))
    edit(files / PROJECTION, lambda c: [c["model"].pop(n) for n in list(c["model"]) if ".default." in n])
    edit(files / PROJECTION, lambda c: c["model"].pop(LORA.format(1, "B", "")))
    with pytest.raises(ModelError, match=r"one of the two matrices of model\.layers\.1"):
        convert(tmp_path / "out", lora_alpha=3, **arguments(files))
    edit(files / PROJECTION, lambda c: c["model"].update({LORA.format(1, "B", ""): torch.ones(41, 5)}))
    with pytest.raises(ModelError, match="trained on another LLM"):
        convert(tmp_path / "out", lora_alpha=3, **arguments(files))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def put(text: bytes, name: str) -> Callable[[Path], None]:
    return lambda files: (files / name).write_bytes(text) and None


def cut(name: str, share: float) -> Callable[[Path], None]:
    return lambda files: os.truncate(files / name, int((files / name).stat().st_size * share))


def spoil(name: str, tensor: str, value: float) -> Callable[[Path], None]:
    return lambda files: edit(files / name, lambda c: c.get("model", c)[tensor].flatten()[-1:].fill_(value))


def evil(files: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(files / "it ran"),)

    torch.save({"model": {"llama_proj.weight": Runs()}}, files / PROJECTION)


def reshard(files: Path) -> None:
    folder = files / LLM
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    save_file({n: state[n] for n in names[1:]}, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    index = dict.fromkeys(names, "model-00002-of-00002.safetensors") | {names[0]: "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def config(files: Path, **changes: Any) -> None:
    path = files / LLM / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def no_change(files: Path) -> None:
    """The files are in order; the arguments are not."""


def record(prompt: str) -> Callable[[Path], None]:
    return lambda files: edit(files / PROJECTION, lambda c: c["config"]["model"].update(prompt_template=prompt))


def model_of(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda files: edit(files / name, lambda c: change(c.get("model", c)))


KEY = "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"
QUERY = "Qformer.bert.encoder.layer.0.attention.self.query.weight"
WRONG: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "vision encoder and Q-Former swapped": (
        no_change,
        {"vit": QFORMER, "qformer": VIT},
        "blip2.pth is no EVA|eva_vit.pth is no BLIP-2",
    ),
    "Q-Former given as the projection": (
        no_change,
        {"projection": QFORMER},
        "blip2.pth .* no tensor t5_proj.bias",
    ),
    "projection given as the Q-Former": (no_change, {"qformer": PROJECTION}, "minigpt4.pth is no BLIP-2 Q-Former"),
    "a projection for a larger LLM": (
        model_of(
            PROJECTION, lambda m: m.update({"llama_proj.weight": torch.ones(50, 24), "llama_proj.bias": torch.ones(50)})
        ),
        {},
        "llama_proj.weight in minigpt4.pth gives image tokens of width 50, but the LLM 'llm' takes 40",
    ),
    "a projection of another bridge": (
        model_of(PROJECTION, lambda m: m.update({"llama_proj.weight": torch.ones(40, 128)})),
        {},
        "takes features of width 128, but query_tokens in blip2.pth has the width 24",
    ),
    "a bias that does not fit its weight": (
        model_of(PROJECTION, lambda m: m.update({"llama_proj.bias": torch.ones(41)})),
        {},
        r"llama_proj.bias in minigpt4.pth has the shape \(41,\), .* \(40,\)",
    ),
    "no Q-Former where one is needed": (
        no_change,
        {"qformer": None},
        "features of width 24, but patches have the width 32",
    ),
    "a Q-Former for another vision encoder": (
        model_of(QFORMER, lambda m: m.update({KEY: torch.ones(24, 48)})),
        {},
        "layer.0.crossattention.self.key.weight in blip2.pth reads patches of width 48, .* 32",
    ),
    "a vision encoder cut off": (cut(VIT, 0.7), {}, "eva_vit.pth is damaged, cut off"),
    "a Q-Former cut off near its end": (cut(QFORMER, 0.995), {}, "blip2.pth is damaged, cut off"),
    "a web page": (put(b"\n<!DOCTYPE html><html>Sign in</html>", VIT), {}, "eva_vit.pth is a web page"),
    "a pointer": (
        put(b"version https://git-lfs.github.com/spec/v1\noid", QFORMER),
        {},
        "blip2.pth is a Git LFS pointer",
    ),
    "an empty file": (put(b"", PROJECTION), {}, "minigpt4.pth is empty"),
    "nonsense": (put(bytes(range(256)) * 9, PROJECTION), {}, "minigpt4.pth is damaged"),
    "a damaged safetensors header": (put(b"\x40" + bytes(7) + b"{" + b"\xff" * 90, VIT), {}, "eva_vit.pth is damaged"),
    "a pickle that runs code": (evil, {}, r"minigpt4.pth is a pickle that asks to run \w+.mkdir"),
    "a file that is not there": (lambda files: (files / VIT).unlink(), {}, "no file 'eva_vit.pth'"),
    "a NaN": (
        spoil(VIT, "blocks.1.mlp.fc1.weight", float("nan")),
        {},
        "blocks.1.mlp.fc1.weight in eva_vit.pth .* not finite",
    ),
    "an infinity": (
        spoil(PROJECTION, "llama_proj.bias", float("inf")),
        {},
        "llama_proj.bias in minigpt4.pth .* not finite",
    ),
    "a number for a tensor": (model_of(QFORMER, lambda m: m.update({QUERY: 3})), {}, f"{QUERY} in blip2.pth is a int"),
    "a tensor without its values": (
        model_of(QFORMER, lambda m: m.update({QUERY: torch.ones(1).expand(24, 24)})),
        {},
        f"{QUERY} in blip2.pth is not a plain one",
    ),
    "a tensor missing": (
        model_of(QFORMER, lambda m: m.pop(QUERY)),
        {},
        "gives bridge.qformer.encoder.layer.0.attention",
    ),
    "a tensor too many": (model_of(QFORMER, lambda m: m.update(extra=torch.ones(1))), {}, "blip2.pth holds extra"),
    "a block missing": (
        lambda files: edit(files / VIT, lambda m: [m.pop(n) for n in list(m) if n.startswith("blocks.1.")]),
        {},
        "eva_vit.pth holds 2 blocks",
    ),
    "heads that nothing tells": (no_change, {"vision_heads": None}, "width 32 .* give --vision-heads"),
    "heads that do not divide": (no_change, {"qformer_heads": 7}, "qformer_heads is 7, .* width 24"),
    "a template that does not exist": (no_change, {"template": "vicuna-v9"}, "'vicuna-v9' is not known"),
    "a template of other weights": (
        record("[INST] {} [/INST] "),
        {},
        r"trained with the prompt '\[INST\] {} \[/INST\] ', .* '###Human: {} ###Assistant: ': use --template llama2",
    ),
    "a shard of the LLM missing": (reshard, {}, "LLM 'llm' has no model-00001-of-00002.safetensors"),
    "the LLM cut off": (cut(f"{LLM}/model.safetensors", 0.9), {}, "model.safetensors is damaged or cut off"),
    "the LLM not there": (no_change, {"llm": "nowhere/at all"}, "The LLM 'nowhere/at all' is not there"),
    "the LLM without a config": (lambda files: (files / LLM / "config.json").unlink(), {}, "'llm' has no config.json"),
    "no LLM at all": (lambda files: config(files, model_type="vit"), {}, "'llm' is of type 'vit'"),
    "an LLM of other sizes than its config": (
        lambda files: config(files, intermediate_size=99),
        {},
        r"mlp.down_proj.weight of the LLM 'llm' has the shape \(40, 64\), .* \(40, 99\)",
    ),
    "the tokenizer of another LLM": (
        lambda files: (files / LLM / "tokenizer.model").write_bytes(tokenizer_model(450)),
        {},
        "has 450 ids, but the LLM's vocabulary has 400",
    ),
    "two vision encoders": (no_change, {"blip2": "some/model"}, "--vit for the original file, or --blip2"),
}


@pytest.mark.parametrize("way", WRONG)
def test_ways_of_getting_it_wrong(files: Path, tmp_path: Path, way: str) -> None:
    change, given, message = WRONG[way]
    change(files)
    given = {
        name: files / value if name in ("vit", "qformer", "projection") and value else value
        for name, value in given.items()
    }
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MiniChatError, match=message) as caught:
        convert(tmp_path / "out", **{**arguments(files), **given})
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert str(tmp_path) not in said
    assert sorted(tmp_path.iterdir()) == before  # no folder, no half of one
    assert not (files / "it ran").exists()


def test_a_folder_that_is_there_stays(published: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ModelError, match="'out' exists already"):
        convert(tmp_path / "out", **arguments(published["qformer"]))
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_full_disk_leaves_nothing(
    published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minichat.weights.convert.write_json", full)
    with pytest.raises(ModelError, match=r"'out' cannot be written .No space left on device"):
        convert(tmp_path / "out", **arguments(published["qformer"]))
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_on_purpose_is_recorded(files: Path, tmp_path: Path) -> None:
    model_of(QFORMER, lambda m: m.update(extra=torch.ones(1)))(files)
    out = convert(tmp_path / "out", allow_unused=["ex*"], **arguments(files))
    assert json.loads((out / "conversion.json").read_text())["allow_unused"] == {"ex*": ["extra"]}


def test_old_pickles_and_safetensors_are_read_too(files: Path, tmp_path: Path) -> None:
    vit, projection = torch.load(files / VIT), torch.load(files / PROJECTION)
    save_file(vit, files / VIT)
    torch.save(projection, files / PROJECTION, _use_new_zipfile_serialization=False)
    llm = load_file(files / LLM / "model.safetensors")
    torch.save(llm, files / LLM / "pytorch_model.bin")
    (files / LLM / "model.safetensors").unlink()
    bot = minichat.load(convert(tmp_path / "out", **arguments(files)), device="cpu")
    wanted = tiny_bot().model.language_model.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in bot.model.language_model.state_dict().items())


def test_what_published_files_are_known_to_hold_besides(files: Path, tmp_path: Path) -> None:
    """The encoder's own end by either name, and the projections to other LLMs."""
    ends = {"fc_norm.weight": torch.ones(2), "fc_norm.bias": torch.zeros(2)}
    edit(files / VIT, lambda c: c.update(ends))
    others = {
        f"{llm}_proj.{leaf}": torch.ones(2) for llm in ("t5", "opt", "llm", "llama") for leaf in ("weight", "bias")
    }
    edit(files / QFORMER, lambda c: c["model"].update(others))
    record = json.loads((convert(tmp_path / "out", **arguments(files)) / "conversion.json").read_text())
    assert set(ends) <= set(record["known_to_be_unused"][VIT])
    assert set(others) <= set(record["known_to_be_unused"][QFORMER])


def test_spare_rows_of_the_vocabulary_have_a_limit(files: Path, tmp_path: Path) -> None:
    """An embedding may be padded beyond its tokenizer by 1,024 rows, and not by one more."""
    state = load_file(files / LLM / "model.safetensors")
    for spare in (1024, 1025):
        config(files, vocab_size=400 + spare)
        grown = {
            name: torch.cat([tensor, tensor.new_zeros(spare, tensor.shape[1])]) if tensor.shape[0] == 400 else tensor
            for name, tensor in state.items()
        }
        save_file(grown, files / LLM / "model.safetensors", metadata={"format": "pt"})
        if spare == 1024:
            assert convert(tmp_path / "out", **arguments(files))
        else:
            with pytest.raises(ModelError, match="has 400 ids, but the LLM's vocabulary has 1425"):
                convert(tmp_path / "other", **arguments(files))


def test_shards_are_whole(published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_io.write_tensors, "__defaults__", ("model.safetensors", 20_000))
    out = convert(tmp_path / "out", merge=True, **arguments(published["qformer"]))
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert minichat.load(out, device="cpu").caption([noise_picture()], max_new_tokens=2)


def test_control_ids_are_the_tokenizers(files: Path, tmp_path: Path) -> None:
    """Vicuna v0's own files, as MiniGPT-4 publishes them, say 0, 1 and -1, and its embedding has a row to spare."""
    wrong = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    for name in ("config.json", "generation_config.json"):
        path = files / LLM / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    config(files, vocab_size=401, max_sequence_length=2048)
    state = load_file(files / LLM / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(1, state[name].shape[1])])
    save_file(state, files / LLM / "model.safetensors", metadata={"format": "pt"})
    bot = minichat.load(convert(tmp_path / "out", **arguments(files)), device="cpu")
    for ids in (bot.model.generation_config, bot.model.config.text_config):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)
    assert bot.caption([noise_picture(1), noise_picture(2, (9, 9))], max_new_tokens=3)
    several = json.loads((files / LLM / "generation_config.json").read_text()) | {"eos_token_id": [2, 7, 9999]}
    (files / LLM / "generation_config.json").write_text(json.dumps(several))
    bot = minichat.load(convert(tmp_path / "several", **arguments(files)), device="cpu")
    assert bot.model.generation_config.eos_token_id == [2, 7]


def test_another_picture_size_resizes_the_positions(published: dict[str, Path], tmp_path: Path) -> None:
    out = convert(tmp_path / "out", image_size=84, **arguments(published["patch_merge"], "patch_merge"))
    bot = minichat.load(out, device="cpu")
    assert bot.model.config.num_image_tokens == 36 // 4
    assert bot.caption([noise_picture()], max_new_tokens=2)


def test_a_folder_that_refers_loads_its_llm_or_raises(files: Path, tmp_path: Path) -> None:
    out = convert(tmp_path / "out", **arguments(files))
    with pytest.raises(ModelError, match="refers to its LLM"):
        MiniChatForConditionalGeneration.from_pretrained(out)
    bot = minichat.load(out, device="cpu")
    bot.model.save_pretrained(tmp_path / "whole")
    assert MiniChatForConditionalGeneration.from_pretrained(tmp_path / "whole").config.llm is None
    weights = files / LLM / "model.safetensors"
    state = load_file(weights)
    state["lm_head.weight"][0, 0] += 1
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"LLM 'llm' of the fingerprint \w{12}, but the one that is there has \w{12}"):
        minichat.load(out, device="cpu")
    shutil.rmtree(files / LLM)
    with pytest.raises(ModelError, match="'out' refers to its LLM 'llm', which cannot be used") as caught:
        minichat.load(out, device="cpu")
    assert str(tmp_path) not in str(caught.value)
