"""vLLM writes what we write: models of ours by its plug-in, and exports by its own BLIP-2. `make test-vllm` runs it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import minichat
from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Conversation
from minichat.weights.export import export
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


def conversation(number: int) -> Conversation:
    """With 0, 1 or 3 pictures; of every other one the first picture is in an earlier turn."""
    seeds = pictures_of(number)
    asked, first = Conversation(), seeds[: number % 2]
    if number % 2:
        asked = asked.user("What is it?", [noise_picture(seed) for seed in first]).assistant("It is red.")
    return asked.user(f"How many are there on number {number}?", [noise_picture(seed) for seed in seeds[len(first) :]])


def ours(bot: MiniChat, ids: list[int], pixels: Any) -> list[int]:
    """Our greedy ids, as far as no two were near."""
    with torch.inference_mode():
        embeds = bot.model.embed(torch.tensor([ids]), pixels)
        written: list[int] = []
        for _ in range(12):
            logits = bot.model(inputs_embeds=embeds, logits_to_keep=1).logits[0, -1]
            best = logits.topk(2).values
            if best[0] - best[1] < NEAR:
                break
            written.append(int(logits.argmax()))
            embeds = torch.cat([embeds, bot.model.get_input_embeddings()(torch.tensor([written[-1:]]))], 1)
    return written


def theirs(folder: Path, prompts: list[dict[str, Any]], desk: Path) -> dict[str, list[list[int]]]:
    (desk / "prompts.json").write_text(json.dumps(prompts))
    command = [f"{INSTALLED}/bin/python", str(PROGRAM), str(folder), str(desk / "prompts.json"), str(desk / "out.json")]
    done = subprocess.run(command, cwd=desk, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads((desk / "out.json").read_text())


def saved(seeds: list[int], desk: Path) -> list[str]:
    for seed in seeds:
        noise_picture(seed).save(desk / f"{seed}.png")
    return [str(desk / f"{seed}.png") for seed in seeds]


def check(wanted: list[list[int]], found: dict[str, list[list[int]]]) -> None:
    assert sum(map(len, wanted)) > 6 * len(wanted)  # near ones are few
    for way, written in found.items():
        for number, (right, ids) in enumerate(zip(wanted, written, strict=False)):
            assert ids[: len(right)] == right, f"{way}, prompt {number}"


@pytest.mark.parametrize("kind", ["minichat-tiny", "qformer", "patch_merge"])
def test_the_plug_in_writes_our_ids(kind: str, tmp_path: Path) -> None:
    folder = model(kind, tmp_path / "model")
    bot = minichat.load(folder, device="cpu", dtype="float32")
    prompts, wanted = [], []
    for number in range(COUNT):
        prompt = bot.processor.render(conversation(number), add_generation_prompt=True)
        pixels = None
        if prompt.pictures:
            pixels = bot.processor.image_processor(list(prompt.pictures), return_tensors="pt")["pixel_values"]
        wanted.append(ours(bot, prompt.ids, pixels))
        prompts.append({"ids": prompt.ids, "pictures": saved(pictures_of(number), tmp_path)})
    check(wanted, theirs(folder, prompts, tmp_path))


def test_vllms_blip2_writes_our_ids(tmp_path: Path) -> None:
    """For prompts that begin with the picture, which is all that it can place."""
    bot = minichat.load("minichat-tiny", device="cpu", dtype="float32")
    folder = export("minichat-tiny", "blip2", tmp_path / "blip2")
    from transformers import AutoTokenizer

    tokenizer, prompts, wanted = AutoTokenizer.from_pretrained(folder), [], []
    for number in range(COUNT):
        text = f"How many are there on number {number}?"
        words = tokenizer(text)["input_ids"]
        pixels = bot.processor.image_processor([noise_picture(number)], return_tensors="pt")["pixel_values"]
        wanted.append(ours(bot, [bot.processor.image_token_id] * bot.processor.num_image_tokens + words, pixels))
        prompts.append({"text": text, "pictures": saved([number], tmp_path)})
    check(wanted, theirs(folder, prompts, tmp_path))
