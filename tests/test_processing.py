"""The processor keeps Hugging Face's contract, and everything it makes comes from the one renderer."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from prompt_samples import BLUE, RED, tokenizer, tokenizer_model
from transformers import AutoProcessor, AutoTokenizer

import minichat.model  # noqa: F401 (registers the Auto classes)
from minichat import images
from minichat.errors import ImageError, ModelError, PromptError, SettingsError
from minichat.prompt.conversation import Conversation
from minichat.prompt.processor import MODEL_FILE, MiniChatImageProcessor, MiniChatProcessor
from minichat.prompt.template import TEMPLATES
from minichat.prompt.tokenizer import FastTokenizer, SentencePieceTokenizer

SIDE = 8


def _make(template: str = "minigpt-v2", **options: Any) -> MiniChatProcessor:
    return MiniChatProcessor.from_tokenizer_model(
        tokenizer_model(), image_size=SIDE, template=template, num_image_tokens=3, **options
    )


@pytest.fixture(scope="module")
def processor() -> MiniChatProcessor:
    return _make()


QUESTION: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What is </s> <ImageHere> [INST]?"}],
    }
]
ASK: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}


def test_messages_go_through_the_renderer(processor: MiniChatProcessor) -> None:
    batch = processor.apply_chat_template(QUESTION, **ASK)
    rendered = processor.render(Conversation.from_messages(QUESTION), add_generation_prompt=True)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert batch["input_ids"].tolist() == [rendered.ids]
    assert batch["attention_mask"].tolist() == [[1] * len(rendered.ids)]
    assert torch.equal(batch["pixel_values"], images.to_pixels([RED], SIDE))
    assert rendered.ids.count(processor.image_token_id) == 3
    assert rendered.ids.count(tokenizer().eos_id) == 0
    assert batch["input_ids"].dtype == torch.long


def test_to_tidy_is_the_models_and_holds_for_every_template(tmp_path: Path) -> None:
    said, *typed = (Conversation().user(text, [RED]) for text in ("What is it?", "WHAT  IS IT?", "what is it?"))
    _make(tidy=True).save_pretrained(tmp_path)
    for made, same in (
        (_make(tidy=True), True),
        (MiniChatProcessor.from_pretrained(tmp_path), True),
        (_make(), False),
    ):
        for template in ("minigpt-v2", "vicuna-v0"):
            processor = made.with_template(template)
            for other in typed:
                assert (processor.render(other).ids == processor.render(said).ids) == same
    with pytest.raises(ModelError, match="true or false"):
        _make(tidy="yes")


def test_several_conversations_are_padded_on_the_left(processor: MiniChatProcessor) -> None:
    hello = [{"role": "user", "content": "Hi"}]
    two = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "image", "image": BLUE}]}]
    batch = processor.apply_chat_template([QUESTION, hello, two], **ASK)
    singles = [processor.apply_chat_template(one, **ASK) for one in (QUESTION, hello, two)]
    for row, single in enumerate(singles):
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == single["input_ids"][0].tolist()
        assert batch["attention_mask"][row, -1] == 1
    assert torch.equal(batch["pixel_values"], images.to_pixels([RED, RED, BLUE], SIDE))
    assert "pixel_values" not in singles[1]


def test_lists_text_and_ids_alone_are_given_on_request(processor: MiniChatProcessor) -> None:
    ids = processor.apply_chat_template(QUESTION, **ASK)["input_ids"]
    assert torch.equal(processor.apply_chat_template(QUESTION, **{**ASK, "return_dict": False}), ids)
    assert processor.apply_chat_template(QUESTION, tokenize=True, add_generation_prompt=True) == ids.tolist()
    arrays = processor.apply_chat_template(QUESTION, **{**ASK, "return_tensors": "np"})
    assert isinstance(arrays["pixel_values"], numpy.ndarray)
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert text == f"<s><s>[INST] <Img>{'<ImageHere>' * 3}</Img> What is </s> <ImageHere> [INST-]? [/INST]"
    assert processor.apply_chat_template([QUESTION], add_generation_prompt=True) == [text]


def test_labels_are_the_supervised_ids(processor: MiniChatProcessor) -> None:
    told = Conversation().user("What is it?", [RED]).assistant("A ring.")
    rows = [processor.render(told), processor.render(Conversation().user("Hi").assistant("A red star."))]
    batch = processor.batch(rows, padding_side="right", labels=True)
    assert batch["labels"].shape == batch["input_ids"].shape
    for row, text in enumerate(("A ring.", "A red star.")):
        labels = batch["labels"][row]
        assert processor.decode(labels[labels != -100], skip_special_tokens=False) == f"{text}</s>"
        assert batch["attention_mask"][row, 0] == 1
    assert torch.equal(batch["labels"][0] != -100, torch.tensor(rows[0].loss_mask + [False] * _missing(batch, rows[0])))


def _missing(batch: Any, row: Any) -> int:
    return batch["input_ids"].shape[1] - len(row.ids)


def test_questions_with_their_pictures(processor: MiniChatProcessor) -> None:
    one = processor(images=RED, text="What is it?", return_tensors="pt")
    both = processor(images=[[RED, BLUE], None], text=["Compare.", "Hi <ImageHere>"], return_tensors="pt")
    rendered = processor.render(Conversation().user("What is it?", [RED]), add_generation_prompt=True)
    assert one["input_ids"].tolist() == [rendered.ids]
    assert (both["input_ids"] == processor.image_token_id).sum(1).tolist() == [6, 0]
    assert both["pixel_values"].shape == (2, 3, SIDE, SIDE)


def test_decoding_skips_slots_or_shows_them(processor: MiniChatProcessor) -> None:
    ids = processor.apply_chat_template(QUESTION, **ASK)["input_ids"]
    assert processor.batch_decode(ids) == ["[INST] <Img> </Img> What is </s> <ImageHere> [INST-]? [/INST]"]
    assert processor.decode(ids[0]) == processor.post_process_image_text_to_text(ids)[0]
    shown = processor.decode(ids[0], skip_special_tokens=False)
    assert shown == f"<s><s>[INST] <Img>{'<ImageHere>' * 3}</Img> What is </s> <ImageHere> [INST-]? [/INST]"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_saved_processor_is_the_same_again(template: str, tmp_path: Path) -> None:
    saved = _make(template, image_token_id=500)
    saved.save_pretrained(tmp_path)
    assert (tmp_path / MODEL_FILE).read_bytes() == tokenizer_model()
    for read in (MiniChatProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(read, MiniChatProcessor)
        assert read.to_dict() == saved.to_dict()
        assert read.chat_template == saved.chat_template
        assert isinstance(read.content_tokenizer, SentencePieceTokenizer)
        ours, theirs = (p.apply_chat_template(QUESTION, **ASK) for p in (saved, read))
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        read.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / MODEL_FILE).read_bytes() == tokenizer_model()
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == saved.tokenizer.get_vocab()


def test_without_its_tokenizer_model_a_folder_is_refused(tmp_path: Path) -> None:
    _make().save_pretrained(tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(ModelError, match=MODEL_FILE) as error:
        MiniChatProcessor.from_pretrained(tmp_path)
    assert str(tmp_path) not in str(error.value)


def test_any_fast_tokenizer_serves_where_there_is_no_model_file(tmp_path: Path) -> None:
    made = MiniChatProcessor(MiniChatImageProcessor(SIDE), _make().tokenizer, template="llama2", num_image_tokens=2)
    made.save_pretrained(tmp_path)
    read = MiniChatProcessor.from_pretrained(tmp_path)
    assert isinstance(read.content_tokenizer, FastTokenizer)
    ids = read.apply_chat_template(QUESTION, **ASK)["input_ids"][0].tolist()
    assert (ids.count(read.image_token_id), ids.count(1), ids.count(2)) == (2, 2, 0)
    assert read.image_token_id == len(read.tokenizer)


def test_the_image_processor_takes_what_can_be_opened(tmp_path: Path) -> None:
    data = io.BytesIO()
    BLUE.save(data, "PNG")
    (tmp_path / "b.png").write_bytes(data.getvalue())
    made = MiniChatImageProcessor(size=SIDE)
    pixels = made([BLUE, [data.getvalue(), tmp_path / "b.png"]], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, images.to_pixels([BLUE] * 3, SIDE))
    assert made([])["pixel_values"].shape == (0, 3, SIDE, SIDE)
    read = MiniChatImageProcessor.from_dict(made.to_dict())
    assert read.to_dict() == made.to_dict()
    with pytest.raises(ImageError):
        made(b"no picture")
    for size in ({"height": 4, "width": 6}, {"shortest_edge": 4}, 0):
        with pytest.raises(SettingsError, match="squares"):
            MiniChatImageProcessor(size=size)


def test_requests_that_make_no_sense_are_refused(processor: MiniChatProcessor) -> None:
    address = {"type": "image", "url": "https://example.org/a.png"}
    url = [{"role": "user", "content": [address]}]
    picture = {"type": "image", "base64": base64.b64encode(b"x").decode()}
    for request, said in (
        (lambda: processor.apply_chat_template(QUESTION, tools=[{}]), "'tools'"),
        (lambda: processor.apply_chat_template(url, **ASK), "'url'"),
        (lambda: processor.apply_chat_template([], **ASK), "after a user's message"),
        (lambda: processor(images=RED), "no text"),
        (lambda: processor(images=[RED], text=["a", "b"]), "2 texts and 1 rows"),
        (lambda: processor.batch([]), "at least one"),
        (lambda: _make("vicuna"), "is not known"),
    ):
        with pytest.raises(PromptError, match=said):
            request()
    with pytest.raises(ImageError, match="Message 0, part 0"):
        processor.apply_chat_template([{"role": "user", "content": [picture]}])
