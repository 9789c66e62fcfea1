"""The originals' own numbers, from their own files: converted, loaded and asked as anyone would.

A case is a folder with a `case.json`, below the folders that `MINICHAT_REFERENCE` names (separated by `os.pathsep`), or
else below `tests/reference` and a `shared/reference` beside the project. Float32 agrees to 1e-4, ids exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import minichat
from minichat.data.batches import Collator
from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.data.rows import Rows
from minichat.prompt.conversation import Conversation
from minichat.prompt.render import IGNORED
from minichat.train.config import Config, DataConfig, ModelConfig, Source
from minichat.train.stages import Replies
from minichat.train.together import Together
from minichat.weights.convert import convert
from tests.conftest import reference_folders

TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


def cases_of(kind: str) -> list[Any]:
    """The cases of a kind, told by what `case.json` holds. The same case in two folders is tested once in each."""
    found = []
    for root in reference_folders():
        for file in sorted(root.rglob("case.json")):
            facts = json.loads(file.read_text())
            if kind == "minigpt4" and "chat_template" in facts:
                found.append(pytest.param(file.parent, id=f"{root.name}/{file.parent.relative_to(root)}"))
    return found


class Case:
    """A case, converted and loaded."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        self.out = convert(
            out,
            vit=folder / "eva_vit.pth",
            qformer=folder / "blip2_qformer.pth" if self.facts["qformer"] else None,
            projection=folder / "minigpt4.pth",
            llm=str(folder / "llm"),
            template=self.facts["chat_template"],
            vision_heads=self.facts["vision"]["heads"],
            qformer_heads=self.facts["qformer"]["heads"] if self.facts["qformer"] else None,
            image_size=self.facts["image_size"],
        )
        self.bot = minichat.load(self.out, device="cpu", dtype="float32")
        self.pictures = sorted((folder / "images").iterdir(), key=lambda file: int(file.stem))


CASES = cases_of("minigpt4")
__test__ = bool(CASES)  # a kind of case that is absent makes no test


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = request.param
    return Case(folder, tmp_path_factory.mktemp("converted") / folder.name)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.detach(), theirs, **TOLERANCE)


def test_pixels(case: Case) -> None:
    pixels = case.bot.processor.image_processor(case.pictures, return_tensors="pt")["pixel_values"]
    close(pixels, case.expected["pixel_values"])


@torch.no_grad()
def test_vision_encoder(case: Case) -> None:
    hidden = case.bot.model.vision_model(pixel_values=case.expected["pixel_values"]).last_hidden_state
    close(hidden, case.expected["vit_hidden"])


@torch.no_grad()
def test_ln_vision(case: Case) -> None:
    close(case.bot.model.bridge.ln_vision(case.expected["vit_hidden"]), case.expected["ln_vision"])


@torch.no_grad()
def test_bridge(case: Case) -> None:
    """The Q-Former's queries; without one, what the projection is given is four patches in a row."""
    features = case.bot.model.encode_features(case.expected["pixel_values"])
    if "qformer_out" in case.expected:
        close(features, case.expected["qformer_out"])
    else:
        pictures, patches, width = case.expected["ln_vision"][:, 1:].shape
        count = case.expected["image_embeds"].shape[1]
        close(features, case.expected["ln_vision"][:, 1:].reshape(pictures, count, patches * width // count))


@torch.no_grad()
def test_image_tokens(case: Case) -> None:
    close(case.bot.model.encode_images(case.expected["pixel_values"]), case.expected["image_embeds"])


def samples(case: Case, kind: str) -> list[list[tuple[str, str]]]:
    """The training conversations as (question, reply) pairs, the questions without picture and delimiters."""
    before, after = case.facts["template"].split("{}")
    picture = "<Img><ImageHere></Img> "
    if kind == "caption":
        captions = case.facts["captions"]
        asked = [q.removeprefix(before).removesuffix(after).removeprefix(picture) for q in captions["instructions"]]
        return [[pair] for pair in zip(asked, captions["answers"], strict=True)]
    talk = case.facts["conversation"]
    join = talk["connect_sym"]
    return [
        list(zip(questions.removeprefix(picture).split(join), answers.split(join), strict=True))
        for questions, answers in zip(talk["questions"], talk["answers"], strict=True)
    ]


def examples(case: Case, kind: str) -> list[Example]:
    """The samples as records of a data set, each with its picture."""
    found = []
    for number, sample in enumerate(samples(case, kind)):
        picture = StoredPicture(case.pictures[number].name, case.pictures[number])
        turns = []
        for question, answer in sample:
            shown = () if turns else (picture,)
            turns += [Turn("user", (*shown, question)), Turn("assistant", (answer,))]
        found.append(Example(tuple(turns), Where(f"{kind}.json", record=number + 1)))
    return found


@pytest.fixture(scope="module")
def stage(case: Case) -> Replies:
    """The trainer's own stage, spelling prompts as the original's training did, and cutting replies as it did."""
    data = DataConfig(
        (Source("none"),), template=case.facts["training_template"], max_reply_tokens=case.facts["max_txt_len"]
    )
    config = Config(model=ModelConfig(str(case.out), device="cpu", dtype="float32"), data=data)
    return Replies(config, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["caption", "conversation"])
@torch.no_grad()
def test_training_prompts(case: Case, stage: Replies, kind: str) -> None:
    """Embeddings and targets, row by row; the originals' embeddings leave out the leading BOS."""
    embeds, mask = case.expected[f"{kind}.inputs_embeds"], case.expected[f"{kind}.attention_mask"]
    targets = case.expected[f"{kind}.answer_targets"]
    for number, row in enumerate(map(stage.render, examples(case, kind))):
        # Ours end with the last id that is learnt; theirs go on to the limit, or to the end of the last question.
        length = len(row.ids) - 1
        assert length <= int(mask[number].sum())
        batch = Collator(case.bot.processor)([row])
        ours = case.bot.model.embed(batch["input_ids"], batch["pixel_values"])  # (1, 1 + length, H)
        assert row.ids[0] == case.bot.processor.content_tokenizer.bos_id
        close(ours[0, 1:], embeds[number, :length])
        learnt = row.labels.tolist()[int((row.labels != IGNORED).argmax()) :]
        assert learnt + [IGNORED] * (targets.shape[1] - len(learnt)) == targets[number].tolist()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", ["caption", "conversation"])
def test_training_loss_and_gradients(case: Case, stage: Replies, kind: str, kept: bool, tmp_path: Path) -> None:
    """A step of the trainer: its renderer, collator and loss; with features that were computed before, and without."""
    rows = Rows(map(stage.render, examples(case, kind)))
    collate = stage.collate
    if kept:
        stage.see(list(rows.pictures()), str(tmp_path / "features"), 0, Together(0, 1))
    stage.model.train()
    stage.model.zero_grad()
    batch = stage.collate(list(rows))
    assert ("image_features" in batch, "pixel_values" in batch) == (kept, not kept)
    loss = stage.loss(batch) / stage.count(batch)
    loss.backward()
    stage.collate = collate
    close(loss.reshape(1), case.expected[f"{kind}.loss"])
    close(stage.model.projection.weight.grad, case.expected[f"{kind}.grad_proj_weight"])
    close(stage.model.projection.bias.grad, case.expected[f"{kind}.grad_proj_bias"])
    trained = {name for name, weight in stage.model.named_parameters() if weight.grad is not None}
    assert trained == {"projection.weight", "projection.bias"}


def test_chat_prompts(case: Case) -> None:
    """Ids and embeddings of every prompt, after the replies that the original gave."""
    for number, chat in enumerate(case.facts["chats"]):
        conversation = Conversation()
        for turn, said in enumerate(chat):
            conversation = conversation.user(said["question"], [case.folder / "images" / f for f in said["images"]])
            prompt = case.bot.processor.render(conversation, add_generation_prompt=True, history="text")
            batch = case.bot.processor.batch([prompt])
            with torch.no_grad():
                embeds = case.bot.model.embed(batch["input_ids"], batch.get("pixel_values"))
            theirs = case.expected[f"chat{number}.turn{turn}.prompt_embeds"]
            close(embeds, theirs)
            assert read_back(case, theirs) == prompt.ids
            conversation = conversation.assistant(said["answer"])


def read_back(case: Case, embeds: Tensor) -> list[int]:
    """The ids whose embeddings (1, T, H) these are; what no id has is an image token."""
    table = case.bot.model.get_input_embeddings().weight.detach().double()
    distance, ids = torch.cdist(embeds[0].double(), table).min(-1)
    slot = case.bot.processor.image_token_id
    return [int(i) if d < 1e-5 else slot for d, i in zip(distance, ids, strict=True)]


def test_chats(case: Case) -> None:
    """Every turn's generated ids, and its text, in sessions that go on from their own replies."""
    for chat in case.facts["chats"]:
        session = case.bot.chat(history="text", max_new_tokens=case.facts["max_new_tokens"])
        for said in chat:
            session.ask(said["question"], [case.folder / "images" / name for name in said["images"]])
            reply = session.conversation.messages[-1]
            assert list(reply.ids) == without_stop(said["token_ids"], case.facts["stop_ids"])
            # The original's Chat.answer, from the shown text to the next prompt's.
            assert reply.text.split("###")[0].split("Assistant:")[-1].strip() == said["answer"]


def without_stop(ids: list[int], stops: list[list[int]]) -> list[int]:
    """A reply's ids without the stop that ended it: a message keeps what was said."""
    return next((ids[: -len(stop)] for stop in stops if ids[-len(stop) :] == stop), ids)
