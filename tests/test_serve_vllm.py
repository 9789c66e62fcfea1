"""vLLM writes what we write: models of ours by its plug-in, and exports by its own BLIP-2. `make test-vllm` runs it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import minichat
from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Conversation
from minichat.toy.world import draw, random_scene
from minichat.weights.export import export
from tests.clients.vllm_ids import PENALTY
from tests.tiny import noise_picture, tiny_bot

PROGRAM = Path(__file__).parent / "clients" / "vllm_ids.py"
INSTALLED = os.environ.get("MINICHAT_VLLM")
pytestmark = pytest.mark.skipif(INSTALLED is None, reason="vLLM is not installed: make test-vllm")

NEAR = 1e-3  # logits of about 10: where two ids are nearer than this, either may be the likeliest
COUNT = 30
LLM = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 256}


def model(kind: str, folder: Path) -> Path:
    """A folder that vLLM opens: the built-in model whole, or a random one."""
    if kind == "minichat-tiny":
        return export(kind, "minichat", folder)
    bot = tiny_bot(kind=kind, template="llama2" if kind == "patch_merge" else "vicuna-v0", text=LLM)
    bot.model.save_pretrained(folder)
    bot.processor.save_pretrained(folder)
    return folder


def pictures_of(number: int) -> list[int]:
    return [100 * number + each for each in range((0, 1, 3)[number % 3])]


def messages(number: int) -> list[dict[str, Any]]:
    """Two questions with a reply between them, and 0, 1 or 3 pictures before, within or behind their words."""
    chance = random.Random(number)
    asked = [[word("What is it?")], [word("Look, "), word(f"how many are there on number {number}?")]]
    for seed in pictures_of(number):
        turn = chance.choice(asked)
        turn.insert(chance.randint(0, len(turn)), {"type": "image", "seed": seed})
    reply = {"role": "assistant", "content": [word("It is red.")]}
    return [{"role": "user", "content": asked[0]}, reply, {"role": "user", "content": asked[1]}]


def word(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def with_pictures(asked: list[dict[str, Any]], picture: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**each, "content": [picture(part["seed"]) if "seed" in part else part for part in each["content"]]}
        for each in asked
    ]


def conversation(number: int) -> Conversation:
    return Conversation.from_messages(
        with_pictures(messages(number), lambda seed: {"type": "image", "image": noise_picture(seed)})
    )


def ours(bot: MiniChat, ids: list[int], pixels: Any, penalty: float = 1.0) -> list[int]:
    """Our greedy ids, as far as no two were near. The penalty is vLLM's: what the prompt holds counts, too."""
    with torch.inference_mode():
        embeds = bot.model.embed(torch.tensor([ids]), pixels)
        written: list[int] = []
        for _ in range(12):
            logits = bot.model(inputs_embeds=embeds, logits_to_keep=1).logits[0, -1]
            said = torch.tensor(sorted(i for i in {*ids, *written} if i < len(logits)))  # a slot is no word
            logits[said] = torch.where(logits[said] > 0, logits[said] / penalty, logits[said] * penalty)
            best = logits.topk(2).values
            if best[0] - best[1] < NEAR:
                break
            written.append(int(logits.argmax()))
            embeds = torch.cat([embeds, bot.model.get_input_embeddings()(torch.tensor([written[-1:]]))], 1)
    return written


def pixels_of(bot: MiniChat, pictures: Sequence[Any]) -> Any:
    return bot.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"] if pictures else None


def theirs(folder: Path, prompts: list[dict[str, Any]], desk: Path, devices: str = "1") -> dict[str, Any]:
    (desk / "prompts.json").write_text(json.dumps(prompts))
    files = [str(desk / name) for name in ("prompts.json", "out.json")]
    command = [f"{INSTALLED}/bin/python", str(PROGRAM), str(folder), *files, devices]
    done = subprocess.run(command, cwd=desk, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((desk / "out.json").read_text())


def saved(seed: int, desk: Path) -> str:
    noise_picture(seed).save(desk / f"{seed}.png")
    return str(desk / f"{seed}.png")


def check(bot: MiniChat, pictures: list[Sequence[Any]], found: dict[str, Any]) -> None:
    """What vLLM wrote, in each way, is what we write after the ids that it read."""
    pixels = [pixels_of(bot, each) for each in pictures]
    plain = [ours(bot, ids, each) for ids, each in zip(found["read"], pixels, strict=True)]
    penalized = [ours(bot, ids, each, PENALTY) for ids, each in zip(found["read"], pixels, strict=True)]
    assert sum(map(len, plain)) > 6 * len(plain)  # near ones are few
    assert set(found["written"]) == {"alone", "together", "again", "penalized"}
    assert plain != penalized
    for way, written in found["written"].items():
        wanted = penalized if way == "penalized" else plain
        for number, (right, ids) in enumerate(zip(wanted, written, strict=True)):
            assert ids[: len(right)] == right, f"{way}, prompt {number}"


def prompts_of(bot: MiniChat, desk: Path) -> tuple[list[dict[str, Any]], list[Sequence[Any]]]:
    rendered = [bot.processor.render(conversation(number), add_generation_prompt=True) for number in range(COUNT)]
    shown = [[part["seed"] for each in messages(n) for part in each["content"] if "seed" in part] for n in range(COUNT)]
    prompts = [
        {"ids": each.ids, "pictures": [saved(seed, desk) for seed in seeds]}
        for each, seeds in zip(rendered, shown, strict=True)
    ]
    return prompts, [each.pictures for each in rendered]


@pytest.mark.parametrize("kind", ["minichat-tiny", "qformer", "patch_merge"])
def test_the_plug_in_writes_our_ids(kind: str, tmp_path: Path) -> None:
    folder = model(kind, tmp_path / "model")
    bot = minichat.load(folder, device="cpu", dtype="float32")
    prompts, pictures = prompts_of(bot, tmp_path)
    found = theirs(folder, prompts, tmp_path)
    assert found["read"] == [prompt["ids"] for prompt in prompts]
    if kind == "qformer":  # whose prompts are longer than the blocks of 128 that vLLM keeps
        assert sum(found["known"]) > sum(map(len, found["read"])) / 2
    check(bot, pictures, found)


def test_messages_are_spelled_by_our_template(tmp_path: Path) -> None:
    """As clients of `vllm serve` send them: each picture becomes its slots, wherever it stands."""
    folder = model("minichat-tiny", tmp_path / "model")
    bot = minichat.load(folder, device="cpu", dtype="float32")
    asked = [
        with_pictures(messages(n), lambda seed: {"type": "image_pil", "image_pil": saved(seed, tmp_path)})
        for n in range(COUNT)
    ]
    found = theirs(folder, [{"messages": each} for each in asked], tmp_path)
    slot, each = bot.processor.image_token_id, bot.processor.num_image_tokens
    for number, ids in enumerate(found["read"]):
        rendered = bot.processor.render(conversation(number), add_generation_prompt=True).ids
        assert ids.count(slot) == rendered.count(slot) == each * len(pictures_of(number))
    check(bot, [conversation(number).pictures for number in range(COUNT)], found)


def test_vllms_blip2_writes_our_ids(tmp_path: Path) -> None:
    """For prompts that begin with the picture, which is all that it can place."""
    bot = minichat.load("minichat-tiny", device="cpu", dtype="float32")
    folder = export("minichat-tiny", "blip2", tmp_path / "blip2")
    prompts = [
        {"text": f"How many are there on number {number}?", "pictures": [saved(number, tmp_path)]}
        for number in range(COUNT)
    ]
    found = theirs(folder, prompts, tmp_path)
    slots = {json.loads((folder / "config.json").read_text())["image_token_index"]: bot.processor.image_token_id}
    found["read"] = [[slots.get(each, each) for each in ids] for ids in found["read"]]
    check(bot, [[noise_picture(number)] for number in range(COUNT)], found)


def test_captions_are_those_of_one_process(tmp_path: Path) -> None:
    """`minichat caption --engine vllm`: the same rows, but where two words are nearly alike."""
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        draw(random_scene(random.Random(number))).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "07.png").write_bytes(b"no picture")
    folder = model("minichat-tiny", tmp_path / "model")

    def rows(engine: str) -> list[str]:
        asked = ["caption", "photos", "--out", f"{engine}.jsonl", "--engine", engine, "--model", str(folder)]
        surroundings = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        command = [f"{INSTALLED}/bin/python", "-m", "minichat", *asked, "--dtype", "float32", "--max-new-tokens", "60"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=surroundings)
        assert done.returncode == 3, (done.stdout + done.stderr)[-6000:]
        return (tmp_path / f"{engine}.jsonl").read_text().splitlines()

    ours, theirs = rows("local"), rows("vllm")
    assert len(ours) == len(theirs) == COUNT and theirs[7] == ours[7] and "error" in json.loads(theirs[7])
    assert sum(map(str.__eq__, ours, theirs)) >= COUNT - 3
