"""`minichat new` with CLIP, SigLIP, SigLIP 2 and DINOs before a LLaMA: what they see, and the three bridges."""

from __future__ import annotations

import json
import random
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, Siglip2ImageProcessor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.errors import ImageError, ModelError, SettingsError
from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Conversation
from minichat.weights.convert import convert
from minichat.weights.export import export
from tests.families import SIDE, VISIONS, step, vision_of, write_llm
from tests.tiny import noise_picture

ASK: dict[str, Any] = {"max_new_tokens": 8}
PROCESSORS: dict[str, Any] = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE),
    "siglip": SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    "dinov2": BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size=SIDE,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_rescale=True,
    ),
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visions")
    write_llm("smollm2", folder / "llm")
    for name in VISIONS:
        vision_of(name).save_pretrained(folder / name)
        if name in PROCESSORS:
            PROCESSORS[name].save_pretrained(folder / name)
    return folder


@cache
def _joined(desk: Path, name: str, bridge: str = "pool", size: int | None = None) -> tuple[Path, MiniChat]:
    out = desk / f"{name}-{bridge}-{size}"
    convert(out, blip2=str(desk / name), llm=str(desk / "llm"), bridge=bridge, image_size=size)
    return out, minichat.load(out, device="cpu", dtype="float32")


def smooth_picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Not only noise, so that ways to make it smaller agree but for their rounding."""
    small = Image.frombytes("RGB", (4, 3), random.Random(seed).randbytes(36))
    return small.resize(size, Image.Resampling.BICUBIC)


def states(name: str, pixels: Tensor, **options: Any) -> Tensor:
    """What transformers' own encoder gives; of CLIP the state before its last block, as LLaVA takes it."""
    model = vision_of(name)
    with torch.no_grad():
        if name == "siglip2":
            side = pixels.shape[-1] // 7
            pieces = pixels.unfold(2, 7, 7).unfold(3, 7, 7).permute(0, 2, 3, 4, 5, 1).reshape(len(pixels), side**2, -1)
            shapes, mask = torch.tensor([[side, side]] * len(pixels)), torch.ones(len(pixels), side**2)
            return model(pixel_values=pieces, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state
        out = model(pixel_values=pixels, output_hidden_states=True, **options)
    return out.hidden_states[-2] if name == "clip" else out.last_hidden_state


@pytest.mark.parametrize("name", VISIONS)
def test_it_sees_what_transformers_sees(desk: Path, name: str) -> None:
    bot = _joined(desk, name)[1]
    pixels = torch.randn(2, 3, SIDE, SIDE)
    ours = bot.model.encode_patches(pixels)
    assert torch.allclose(ours, states(name, pixels), atol=1e-5)
    assert bot.model.encode_patches(pixels[:0]).shape == (0, *ours.shape[1:])


@pytest.mark.parametrize("name", [name for name in VISIONS if name != "dinov3"])
def test_another_size_has_interpolated_positions(desk: Path, name: str) -> None:
    """As transformers' own interpolation; a DINOv3's positions are angles, and need none."""
    bot = _joined(desk, name, "pool", 42)[1]
    pixels = torch.randn(1, 3, 42, 42)
    options = {} if name == "siglip2" or name.startswith("dino") else {"interpolate_pos_encoding": True}
    assert bot.processor.image_processor.size == {"height": 42, "width": 42}
    assert torch.allclose(bot.model.encode_patches(pixels), states(name, pixels, **options), atol=1e-4)
    assert bot.model.config.num_image_tokens == 9


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_become_pixels_as_its_own_processor_makes_them(desk: Path, name: str) -> None:
    pictures = [smooth_picture(1), smooth_picture(2, (30, 40)), smooth_picture(3, (28, 28)), smooth_picture(4, (9, 31))]
    theirs = PROCESSORS[name](pictures, return_tensors="pt")["pixel_values"]
    ours = _joined(desk, name)[1].processor.image_processor(pictures)["pixel_values"]
    assert ours.shape == (4, 3, SIDE, SIDE)
    assert torch.allclose(ours, theirs, atol=2.5 / 255 / 0.22)  # a rounding or two of 255


def test_without_a_processor_it_is_the_familys(desk: Path) -> None:
    """SigLIP 2 brings none here: its family stretches pictures. A DINOv2 makes them larger, and sees their middle."""
    square = smooth_picture(1, (SIDE, SIDE))
    theirs = Siglip2ImageProcessor(patch_size=7, max_num_patches=16)
    processor = _joined(desk, "siglip2")[1].processor.image_processor
    assert (processor.image_mean, processor.shortest_edge) == (list(theirs.image_mean), None)
    assert torch.equal(processor(square)["pixel_values"][0].amax(), processor(square)["pixel_values"].amax())
    assert _joined(desk, "dinov2_registers")[1].processor.image_processor.shortest_edge == 32


def test_pixels_of_another_size_are_refused(desk: Path) -> None:
    """Not cropped in silence, as SigLIP's own network would; a picture that is given as one is made to fit."""
    bot = _joined(desk, "siglip")[1]
    with pytest.raises(ImageError, match=r"needs \(pictures, 3, 28, 28\)"):
        bot.model.encode_patches(torch.zeros(1, 3, 40, 30))
    assert bot.processor.image_processor(noise_picture(1, (40, 30)))["pixel_values"].shape == (1, 3, SIDE, SIDE)
    for text in ("left", "right"):  # both ends of a wide picture are seen
        wide = Image.new("RGB", (80, 20))
        wide.paste((255, 255, 255), (0, 0, 10, 20) if text == "left" else (70, 0, 80, 20))
        assert bot.processor.image_processor(wide)["pixel_values"].amax() > 0.5


def test_pooled_patches_are_means_of_squares(desk: Path) -> None:
    """4 × 4 patches → 2 × 2 tokens; of 5 × 5 the last column and row are by themselves."""
    for name, side in (("dinov2_registers", 4), ("siglip", 4)):
        bot = _joined(desk, name)[1]
        first = 3 if name == "dinov2_registers" else 0
        patches = torch.randn(2, first + side**2, 24)
        grid = bot.model.bridge.ln_vision(patches)[:, first:].reshape(2, 2, 2, 2, 2, 24)
        assert torch.allclose(bot.model.bridge(patches), grid.mean((2, 4)).reshape(2, 4, 24), atol=1e-5)
    bot = _joined(desk, "siglip", "pool", 35)[1]
    patches = torch.randn(1, 25, 24)
    tokens = bot.model.bridge(patches)
    assert tokens.shape[1] == bot.model.config.num_image_tokens == 9
    assert torch.allclose(tokens[0, -1], bot.model.bridge.ln_vision(patches)[0, -1], atol=1e-5)


@pytest.mark.parametrize("name", VISIONS)
def test_each_talks_learns_and_is_written(desk: Path, name: str) -> None:
    """Batches are one by one, a session with a cache says what a fresh one says, a step lowers the loss; exported and
    read again it is the same."""
    folder, bot = _joined(desk, name)
    pictures = [noise_picture(number) for number in range(3)]
    prompts = ["What is it?", "Is it red? Or green?", "So?"]
    alone = [bot.caption([i], p, **ASK)[0] for i, p in zip(pictures, prompts, strict=True)]
    assert bot.caption(pictures, prompts, batch_size=3, **ASK) == alone
    assert torch.allclose(bot.encode(pictures), torch.cat([bot.encode([picture]) for picture in pictures]), atol=1e-5)
    chat = bot.chat(**ASK)
    for number, picture in enumerate(pictures[:2]):
        chat.ask(prompts[number], [picture])
    fresh = bot.chat(conversation=Conversation(chat.conversation.messages[:-1]), **ASK)
    fresh.regenerate()
    assert fresh.conversation.messages[-1].ids == chat.conversation.messages[-1].ids
    before, after = step(bot)
    assert after < before
    whole = minichat.load(export(str(folder), "minichat", desk / f"{name}-whole"), device="cpu", dtype="float32")
    assert torch.equal(whole.encode(pictures), bot.encode(pictures))
    assert whole.processor.image_processor.fit == bot.processor.image_processor.fit


@pytest.mark.parametrize("bridge", ["qformer", "patch_merge"])
@pytest.mark.parametrize("name", ["clip", "dinov3"])
def test_the_other_bridges(desk: Path, name: str, bridge: str) -> None:
    """They are written whole and read again; a new Q-Former is always the same, and said to be random."""
    folder, bot = _joined(desk, name, bridge)
    assert bot.model.config.num_image_tokens == (32 if bridge == "qformer" else 4)
    record = json.loads((folder / "conversion.json").read_text())
    assert (record.get("qformer") == "random") == (bridge == "qformer")
    pictures = [noise_picture(number) for number in range(2)]
    features = bot.encode(pictures)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    whole = minichat.load(export(str(folder), "minichat", folder.with_name(f"{folder.name}-whole")), device="cpu")
    assert torch.allclose(whole.encode(pictures).float(), features, atol=1e-5)
    again = convert(folder.with_name(f"{folder.name}-again"), blip2=str(folder), llm=str(folder.parent / "llm"))
    if bridge == "qformer":  # which a model of ours hands on
        assert torch.allclose(minichat.load(again, device="cpu", dtype="float32").encode(pictures), features)
        with pytest.raises(ModelError, match="BLIP-2's vision encoder is"):
            export(str(folder), "blip2", folder.with_name("no"))


def test_an_encoder_with_its_text_side(desk: Path) -> None:
    """A whole CLIP, as it is published: its vision encoder alone is read."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**vision_of("clip").config.to_dict(), "hidden_size": 24}
    whole = CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 20}, vision_config=vision)).eval()
    whole.save_pretrained(desk / "whole-clip")
    bot = _joined(desk, "whole-clip")[1]
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        theirs = whole.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(bot.model.encode_patches(pixels), theirs, atol=1e-5)


def test_what_cannot_be_is_refused(desk: Path) -> None:
    given: dict[str, Any] = {"blip2": str(desk / "siglip"), "llm": str(desk / "llm")}
    with pytest.raises(SettingsError, match="image_size is 30; it must be a multiple of the patch size 7"):
        convert(desk / "no", **given, image_size=30)
    with pytest.raises(SettingsError, match="vision_layers is 9, and 'siglip' has 3"):
        convert(desk / "no", **given, vision_layers=9)
    with pytest.raises(SettingsError, match="bridge is 'mean'; it must be one of qformer, patch_merge, pool"):
        convert(desk / "no", **given, bridge="mean")
    (desk / "wide").mkdir()
    for file in (desk / "siglip").iterdir():
        (desk / "wide" / file.name).write_bytes(file.read_bytes())
    for name, key, value, why in (
        ("preprocessor_config.json", "size", {"height": 28, "width": 56}, "28 × 56: squares are needed"),
        ("config.json", "image_size", [28, 56], "image_size"),
        ("config.json", "model_type", "vit", "holds a model of type 'vit'"),
        ("config.json", "hidden_size", 32, "do not belong together"),
    ):
        kept = (desk / "wide" / name).read_text()
        (desk / "wide" / name).write_text(json.dumps({**json.loads(kept), key: value}))
        with pytest.raises((ModelError, SettingsError), match=why):
            convert(desk / "no", blip2=str(desk / "wide"), llm=given["llm"])
        (desk / "wide" / name).write_text(kept)
    assert not (desk / "no").exists()


def test_the_command_and_a_template_of_ones_own(desk: Path, tmp_path: Path) -> None:
    """What the page on models shows: join, then ask; a template is a YAML file, whose control tokens the LLM has."""
    template = tmp_path / "plain-talk.yaml"
    template.write_text(
        "begin: ''\nuser_prefix: 'Q: '\nuser_suffix: \"\\n\"\nassistant_prefix: 'A:'\nreply_begin: ' '\n"
        "reply_end: <|im_end|>\nbetween: \"\\n\"\ncontrols: [<|im_end|>]\nmarkers: ['Q:', 'A:']\n"
    )
    words = ["new", "--vision", str(desk / "siglip"), "--llm", str(desk / "llm"), "--bridge", "pool"]
    done = CliRunner().invoke(cli.app, [*words, "--template", str(template), "--out", str(tmp_path / "mine")])
    assert done.exit_code == 0, done.stderr
    assert "Its projection is random: train it." in done.stderr
    bot = minichat.load(tmp_path / "mine", device="cpu", dtype="float32")
    assert bot.processor.spelling.name == "plain-talk"
    asked = bot.processor.apply_chat_template(
        [{"role": "user", "content": "Q: <|im_end|>?"}], add_generation_prompt=True, tokenize=True
    )
    assert bot.processor.decode(asked[0], skip_special_tokens=False) == "Q: Q-: <|im_end|>?\nA:"
    assert bot.processor.end_id not in asked[0]
    assert isinstance(bot.chat(**ASK).ask("What is it?", [noise_picture(1)]), str)
    template.write_text("reply_end: <|end|>\ncontrols: [<|end|>]\n")
    done = CliRunner().invoke(cli.app, [*words, "--template", str(template), "--out", str(tmp_path / "no")])
    assert done.exit_code == 1
    assert "control token '<|end|>' is none of the tokenizer's" in done.stderr
    template.write_text("reply_ends: x\n")
    done = CliRunner().invoke(cli.app, [*words, "--template", str(template), "--out", str(tmp_path / "no")])
    assert "'plain-talk.yaml' is none: " in done.stderr


def test_llavas_two_stages(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped recipes, as their first lines say, with small stand-ins under the names of the published parts."""
    configs = Path(__file__).resolve().parent.parent / "train_configs"
    heads = [(configs / f"{name}.yaml").read_text().split("\n#\n")[0] for name in ("llava_projection", "llava_lora")]
    commands = [line.removeprefix("# ") for head in heads for line in head.splitlines()]
    monkeypatch.chdir(tmp_path)
    for place, target in (("google/siglip2-base-patch16-384", "siglip"), ("Qwen/Qwen2.5-1.5B-Instruct", "llm")):
        Path(place).parent.mkdir()
        Path(place).symlink_to(desk / target)
    Path("train_configs").symlink_to(configs)
    said = [("human", "<image>\nWhat is it?"), ("gpt", "A red star."), ("human", "Is it large?"), ("gpt", "Yes.")]
    for file, folder, turns in (
        ("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Pretrain/images/00453", said[:2]),
        ("LLaVA-Instruct-150K/llava_instruct_150k.json", "train2017", said),
    ):
        Path(folder).mkdir(parents=True)
        Path(file).parent.mkdir(exist_ok=True)
        records = []
        for number in range(4):
            noise_picture(number).save(Path(folder) / f"{number}.jpg")
            image = f"00453/{number}.jpg" if "Pretrain" in folder else f"{number}.jpg"
            talk = [{"from": who, "value": text} for who, text in turns]
            records.append({"id": str(number), "image": image, "conversations": talk})
        Path(file).write_text(json.dumps(records))
    small = ["model.device=cpu", "data.num_workers=0", "report.tensorboard=false", "run.epochs=2", "run.batch_size=2"]
    small += ["run.micro_batch_size=2", "optimizer.warmup_steps=1", "data.max_length=500"]
    for command in commands:
        more = small if " train " in command else []
        more += ["lora.rank=2"] if command.endswith("llava_lora.yaml") else []
        done = CliRunner().invoke(cli.app, [*shlex.split(command)[1:], *more])
        assert done.exit_code == 0, done.stderr
        assert not more or "Training takes about " in done.stderr
    first, second = (minichat.load(f"runs/{name}", device="cpu") for name in ("llava_projection", "llava_lora"))
    assert not torch.equal(first.model.projection.weight, second.model.projection.weight)
    assert (Path("runs/llava_lora") / "adapter" / "adapter_config.json").is_file()
    assert isinstance(second.caption([noise_picture(1)], **ASK)[0], str)
