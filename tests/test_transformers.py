"""Models of ours in programs that know Hugging Face's classes alone: pipelines, trainers, loops."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer, pipeline

import minichat
from minichat.inference.bot import MiniChat
from minichat.prompt.conversation import Conversation
from minichat.prompt.processor import MiniChatImageProcessor, MiniChatProcessor
from tests.tiny import noise_picture, tiny_bot
from tests.tiny_network import SIDE, tiny_network
from tests.tiny_t5 import t5_config, t5_tokenizer

MODELS = ("qformer", "patch_merge", "encoder-decoder", "no pad token")


def made(kind: str) -> MiniChat:
    if kind in ("qformer", "patch_merge"):
        return tiny_bot(kind=kind)
    if kind == "encoder-decoder":
        model = tiny_network(text=t5_config().to_dict(), template="t5")
        tokenizer = t5_tokenizer()
    else:
        bot = tiny_bot()
        model, tokenizer = bot.model, bot.processor.tokenizer
        tokenizer.pad_token = None
    config = model.config
    processor = MiniChatProcessor(
        MiniChatImageProcessor(SIDE), tokenizer, config.template, config.num_image_tokens, config.image_token_index
    )
    return MiniChat(model, processor)


@pytest.fixture(scope="module", params=MODELS)
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From a folder, as a stranger makes one."""
    folder = tmp_path_factory.mktemp("model")
    bot = made(request.param)
    if not bot.model.config.is_encoder_decoder:  # pieces that are single bytes are no characters: none is ever said
        bot.model.get_output_embeddings().weight.data[3:259] = 0
    bot.model.save_pretrained(folder)
    bot.processor.save_pretrained(folder)
    return pipeline("image-text-to-text", model=str(folder), device="cpu")


def ask(text: str, *pictures: Any) -> list[dict[str, Any]]:
    """A question; each picture as the part that names it."""
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def picture(seed: int = 1) -> dict[str, Any]:
    return {"type": "image", "image": noise_picture(seed)}


def wanted(pipe: Any, messages: list[dict[str, Any]], **settings: Any) -> list[int]:
    """The ids that plain `generate` gives to what the renderer makes of the messages."""
    rendered = pipe.processor.render(Conversation.from_messages(messages), add_generation_prompt=True)
    batch = pipe.processor.batch([rendered])
    ids = pipe.model.generate(**batch, **{"max_new_tokens": 6, **settings})[0].tolist()
    return ids if pipe.model.config.is_encoder_decoder else ids[len(rendered.ids) :]


def said(pipe: Any, answer: Any) -> str:
    return " ".join(answer["generated_text"].split())


def told(pipe: Any, ids: list[int]) -> str:
    return " ".join(str(pipe.processor.decode(ids)).split())


NEW = {"max_new_tokens": 6, "return_full_text": False}


def test_one_chat(pipe: Any) -> None:
    messages = ask("What is it?", picture())
    [answer] = pipe(text=messages, **NEW)
    assert said(pipe, answer) == told(pipe, wanted(pipe, messages)) != ""
    [whole] = pipe(text=messages, max_new_tokens=6)
    assert whole["generated_text"][-1]["role"] == "assistant"
    [by_kwargs] = pipe(text=messages, generate_kwargs={"max_new_tokens": 6, "num_beams": 2}, return_full_text=False)
    assert said(pipe, by_kwargs) == told(pipe, wanted(pipe, messages, num_beams=2))


def test_chats_in_batches_are_chats_one_by_one(pipe: Any) -> None:
    chats = [
        ask("What is it?", picture(1)),
        ask("How many stars are there in the picture?", picture(2)),
        ask("?", picture(3)),
    ]
    together = pipe(text=chats, batch_size=2, **NEW)
    assert [said(pipe, answer) for [answer] in together] == [told(pipe, wanted(pipe, one)) for one in chats]


def test_a_reply_in_pieces(pipe: Any) -> None:
    messages = ask("What is it?", picture())
    for decoder in (pipe.processor, pipe.tokenizer):
        streamer = TextIteratorStreamer(decoder, skip_prompt=True, skip_special_tokens=True, timeout=60)
        given = {"text": messages, "generate_kwargs": {"streamer": streamer, "max_new_tokens": 6}}
        thread = threading.Thread(target=pipe, kwargs=given)
        thread.start()
        whole = decoder.decode(wanted(pipe, messages), skip_special_tokens=True)
        assert "".join(streamer).split() == whole.split() != []
        thread.join()


def test_pictures_in_every_form(pipe: Any, tmp_path: Path) -> None:
    written = io.BytesIO()
    noise_picture(1).save(written, "PNG")
    (tmp_path / "a.png").write_bytes(written.getvalue())
    coded = base64.b64encode(written.getvalue()).decode()
    answer = told(pipe, wanted(pipe, ask("What?", picture())))
    forms = [
        {"image": noise_picture(1)},
        {"image": str(tmp_path / "a.png")},
        {"path": str(tmp_path / "a.png")},
        {"base64": coded},
        {"image": f"data:image/png;base64,{coded}"},
        {"url": f"data:image/png;base64,{coded}", "text": None},
    ]
    for form in forms:
        [said_of_it] = pipe(text=ask("What?", {"type": "image", **form}), **NEW)
        assert said(pipe, said_of_it) == answer, form
    [openai] = pipe(text=ask("What?", {"type": "image_url", "image_url": {"url": forms[4]["image"]}}), **NEW)
    [beside] = pipe(images=str(tmp_path / "a.png"), text="What?", **NEW)
    [placed] = pipe(text=ask("What?", {"type": "image"}), processor_kwargs={"images": [noise_picture(1)]}, **NEW)
    assert said(pipe, openai) == said(pipe, beside) == said(pipe, placed) == answer
    both = pipe(images=[Image.open(tmp_path / "a.png")] * 2, text=["What?", "What?"], **NEW)
    assert [said(pipe, one) for one in both] == [answer] * 2


def test_without_a_picture_and_with_a_stop(pipe: Any) -> None:
    [plain] = pipe(text=ask("Hello"), **NEW)
    assert said(pipe, plain) == told(pipe, wanted(pipe, ask("Hello")))
    assert pipe(text=ask("Hello", picture()), stop_sequence="e", **NEW)


def test_a_reply_that_is_begun_is_continued(pipe: Any) -> None:
    begun = [*ask("What is it?", picture()), {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    [answer] = pipe(text=begun, max_new_tokens=6)
    assert [message["role"] for message in answer["generated_text"]] == ["user", "assistant"]
    assert answer["generated_text"][-1]["content"][0]["text"].startswith("It is")


# --- training


TOLD: list[dict[str, Any]] = [
    *ask("What is it?", picture()),
    {"role": "assistant", "content": [{"type": "text", "text": "A red star."}]},
]


@pytest.mark.parametrize("kind", ["qformer", "patch_merge", "encoder-decoder"])
def test_a_copy_of_the_ids_is_labels(kind: str) -> None:
    """Image slots and padding are no targets: the loss is that of labels without them."""
    bot = made(kind)
    batch = bot.processor.apply_chat_template(
        [TOLD, TOLD[:1]], tokenize=True, return_dict=True, return_tensors="pt", padding_side="right"
    )
    ids, slot = batch["input_ids"], bot.model.config.image_token_index
    labels = ids.clone()
    labels[ids == slot] = -100
    if not bot.model.config.is_encoder_decoder:  # a decoder's labels are of another length than the prompt's mask
        labels[batch["attention_mask"] == 0] = -100
    given = bot.model(**batch, labels=ids.clone())
    assert torch.isfinite(given.loss)
    assert torch.equal(given.loss, bot.model(**batch, labels=labels).loss)
    torch.testing.assert_close(given.loss, bot.model(**batch, labels=ids.clone(), skip_logits=True).loss)


def test_what_a_collator_asks_for(tmp_path: Path) -> None:
    processor = tiny_bot().processor
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    whole = processor.apply_chat_template(TOLD, **options)
    length = whole["input_ids"].shape[1]
    padded = processor.apply_chat_template(
        [TOLD],
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right", "pad_to_multiple_of": 64, "truncation": False},
        **options,
    )
    assert padded["input_ids"].shape[1] % 64 == 0
    assert padded["attention_mask"].sum() == length
    rendered = processor.render(Conversation.from_messages(TOLD))
    assert padded["assistant_masks"][0, :length].bool().tolist() == rendered.loss_mask
    cut = processor.apply_chat_template(
        [TOLD], processor_kwargs={"truncation": True, "max_length": length - 2}, **options
    )
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, :-2])
    most = processor.apply_chat_template([TOLD], padding="max_length", max_length=150, **options)
    assert most["input_ids"].shape == (1, 150)
    for options_given, message in (
        ({"truncation": True, "max_length": 8}, "max_length is 8, which cuts a picture"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        ({"padding_side": "top"}, "padding_side is 'top'"),
        ({"images": [[noise_picture()]]}, "1 images and 0 places"),
        ({"images": []}, "images has 0 rows for 1 conversations"),
        ({"do_resize": True}, "'do_resize' is not known"),
    ):
        with pytest.raises(minichat.MiniChatError, match=message):
            processor.apply_chat_template([TOLD], processor_kwargs=options_given, **options)
    with pytest.raises(minichat.MiniChatError, match="chat_template is another"):
        processor.apply_chat_template(TOLD, chat_template="{{ messages }}")
    with pytest.raises(minichat.MiniChatError, match="add_special_tokens=False says that the text is a whole prompt"):
        processor(text="a", add_special_tokens=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("to_train")
    bot = tiny_bot()
    bot.model.save_pretrained(folder)
    bot.processor.save_pretrained(folder)
    return str(folder)


def opened(saved: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model of which the projection alone trains, its processor, and its weights as they were."""
    model = AutoModelForImageTextToText.from_pretrained(saved)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("projection."))
    return model, AutoProcessor.from_pretrained(saved), {n: t.clone() for n, t in model.state_dict().items()}


def check_trained(model: Any, before: dict[str, torch.Tensor], losses: list[float]) -> None:
    """The projection has moved, nothing else has, and the same batch is learned better."""
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), before[name])}
    assert moved == {"projection.weight", "projection.bias"}
    assert losses[-1] < losses[0]


def sft(saved: str, out: Path, **options: Any) -> tuple[Any, dict[str, torch.Tensor], list[float]]:
    """`SFTTrainer` with its own collator of pictures and messages: the trainer, weights before, and losses."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, processor, before = opened(saved)
    rows = [
        {
            "images": [noise_picture(1)],
            "messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": text}],
        }
        for text in ("A red star.", "A red star. It is left of the cat.")
    ]
    settings = SFTConfig(
        output_dir=str(out),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=processor, **options)
    trainer.train()
    return trainer, before, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trl_trains_it(saved: str, tmp_path: Path) -> None:
    trainer, before, losses = sft(saved, tmp_path)
    check_trained(trainer.model, before, losses)
    trainer.save_model(str(tmp_path / "out"))
    assert minichat.load(tmp_path / "out", device="cpu").caption([noise_picture(1)], max_new_tokens=2)


def test_trl_trains_an_adapter_on_it(saved: str, tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=r".*language_model.*\.q_proj")
    trainer, before, losses = sft(saved, tmp_path, peft_config=adapter)
    held = trainer.model.state_dict()
    assert any("lora_B" in name and tensor.any() for name, tensor in held.items())
    for name, tensor in trainer.model.unload().state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert losses[-1] < losses[0]


def collate(processor: Any) -> Any:
    def batch(rows: list[Any]) -> Any:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        made = processor.apply_chat_template(rows, **options)
        return {**made, "labels": made["input_ids"].clone()}

    return batch


def test_transformers_trainer_trains_it(saved: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, processor, before = opened(saved)
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        use_cpu=True,
    )
    trainer = Trainer(model, settings, data_collator=collate(processor), train_dataset=[TOLD] * 4)  # type: ignore[arg-type]
    trainer.train()
    check_trained(model, before, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def test_accelerate_trains_it(saved: str) -> None:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    model, processor, before = opened(saved)
    plain = model
    accelerator = Accelerator(cpu=True)
    loader: Any = DataLoader([TOLD] * 4, batch_size=2, collate_fn=collate(processor))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for _ in range(2):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    check_trained(plain, before, losses)
