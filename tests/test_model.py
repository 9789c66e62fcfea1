"""Laws of the network: slots are counted, batch = single, cached = uncached, stored = loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from minichat.errors import ImageError, PromptError
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.model.minichat import QFormerBridge
from tests.tiny_network import (
    KINDS,
    PICTURES_IN_ROW,
    ROWS,
    SIDE,
    VOCABULARY,
    left_padded,
    pictures,
    row,
    tiny_config,
    tiny_network,
)

LOGITS: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> MiniChatForConditionalGeneration:
    return tiny_network(request.param)


def split(pixels: Tensor) -> list[Tensor | None]:
    """The pictures of each row of ROWS."""
    parts = pixels.split(PICTURES_IN_ROW)
    return [part if len(part) else None for part in parts]


# --- pictures ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pictures_become_image_tokens(model: MiniChatForConditionalGeneration) -> None:
    n, width = model.config.num_image_tokens, model.config.image_feature_size
    pixels = pictures(3)
    assert model.encode_features(pixels).shape == (3, n, width)
    assert model.encode_images(pixels).shape == (3, n, 40)
    torch.testing.assert_close(model.encode_images(pixels[1:2]), model.encode_images(pixels)[1:2], **LOGITS)
    assert model.encode_images(pictures(0)).shape == (0, n, 40)


@torch.no_grad()
def test_patch_merge_joins_neighbours_of_a_row() -> None:
    model = tiny_network("patch_merge")
    pixels = pictures(1)
    patches = model.bridge.ln_vision(model.vision_model(pixel_values=pixels).last_hidden_state)[0]  # (1 + 16, W)
    features = model.encode_features(pixels)[0]
    for token in range(4):
        assert torch.equal(features[token], torch.cat([patches[1 + 4 * token + i] for i in range(4)]))


@pytest.mark.parametrize("shape", [(1, 3, 42, 42), (1, 1, SIDE, SIDE), (3, SIDE, SIDE)])
def test_pixels_of_another_shape_are_refused(model: MiniChatForConditionalGeneration, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=f"{SIDE}, {SIDE}"):
        model.encode_images(torch.zeros(shape))


# --- slots ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_picture_lands_in_its_own_slots(model: MiniChatForConditionalGeneration) -> None:
    ids, _ = left_padded(ROWS)
    pixels = pictures(6)
    embeds = model.embed(ids, pixels)
    assert torch.equal(embeds[ids == VOCABULARY].reshape(6, 4, 40), model.encode_images(pixels))
    words = ids != VOCABULARY
    assert torch.equal(embeds[words], model.get_input_embeddings()(ids[words]))
    assert torch.equal(embeds, model.embed(ids, image_features=model.encode_features(pixels)))


@torch.no_grad()
def test_no_picture_at_all(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(model.embed(ids), model.embed(ids, pictures(0)))
    assert torch.equal(model(input_ids=ids).logits, model.language_model(input_ids=ids).logits)


def mismatches(
    model: MiniChatForConditionalGeneration,
) -> list[tuple[list[list[int]], dict[str, Any], tuple[str, ...]]]:
    """Rows, pictures, and what the message must say."""
    width = model.config.image_feature_size
    two_pictures = [row(1, "picture"), row(1, "picture")]
    torn = [[1, *[VOCABULARY] * 3, 7], [1, *[VOCABULARY] * 5][:5]]
    return [
        ([row(1, "picture", 5)], {}, ("4 image slots", "0 pictures")),
        ([row(1, "picture", 5)], {"pixel_values": pictures(2)}, ("4 image slots", "2 pictures", "need 8")),
        ([row(1, 5)], {"pixel_values": pictures(1)}, ("0 image slots", "1 pictures", "need 4")),
        ([[1, *[VOCABULARY] * 3]], {"pixel_values": pictures(1)}, ("3 image slots", "1 pictures", "need 4")),
        (two_pictures, {"pixel_values": pictures(1)}, ("8 image slots", "1 pictures")),
        (torn, {"pixel_values": pictures(1)}, ("7 image slots",)),
        ([[1, *[VOCABULARY] * 3], [*[VOCABULARY] * 1, 1, 1, 1]], {"pixel_values": pictures(1)}, ("Row 0", "3", "4")),
        ([row(1, "picture")], {"image_features": torch.zeros(1, 5, width)}, (f"(1, 5, {width})", f"4, {width}")),
        ([row(1, "picture")], {"image_features": torch.zeros(4, width)}, (f"(4, {width})",)),
        ([row(1, "picture")], {"image_features": torch.zeros(1, 4, width + 1)}, (f"{width + 1}", f"{width}")),
        (
            [row(1, "picture")],
            {"pixel_values": pictures(1), "image_features": torch.zeros(1, 4, width)},
            ("twice",),
        ),
    ]


def test_wrong_counts_are_refused_with_both_numbers(model: MiniChatForConditionalGeneration) -> None:
    for rows, given, words in mismatches(model):
        ids = torch.tensor(rows)
        for call in (model.embed, model.forward, model.generate):
            with pytest.raises(PromptError) as error:
                call(input_ids=ids, **given)
            for word in words:
                assert word in str(error.value)


def test_embeddings_and_ids_are_not_mixed(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([[1, 5]])
    embeds = model.embed(ids)
    for call in (model.forward, model.generate):
        with pytest.raises(PromptError, match="either"):
            call()
        with pytest.raises(PromptError, match="either"):
            call(input_ids=ids, inputs_embeds=embeds)
        with pytest.raises(PromptError, match="already hold"):
            call(inputs_embeds=embeds, pixel_values=pictures(1))


# --- one pass ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "text", [{}, {"model_type": "gpt2", "n_embd": 40, "n_layer": 2, "n_head": 2, "n_positions": 64}]
)
@torch.no_grad()
def test_batch_is_single(attention: str, text: dict[str, Any]) -> None:
    """Rotary and learned positions: padding moves neither."""
    model = tiny_network(text=text)
    model.set_attn_implementation(attention)
    ids, mask = left_padded(ROWS)
    pixels = pictures(6)
    batch = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    assert torch.isfinite(batch).all()
    for r, (own_ids, own_pictures) in enumerate(zip(ROWS, split(pixels), strict=True)):
        single = model(input_ids=torch.tensor([own_ids]), pixel_values=own_pictures).logits[0]
        torch.testing.assert_close(batch[r, -len(own_ids) :], single, **LOGITS)


@torch.no_grad()
def test_eager_is_sdpa(model: MiniChatForConditionalGeneration) -> None:
    ids, mask = left_padded(ROWS)
    logits = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        assert model.vision_model.config._attn_implementation == attention
        assert model.language_model.config._attn_implementation == attention
        logits[attention] = model(input_ids=ids, attention_mask=mask, pixel_values=pictures(6)).logits[mask.bool()]
    torch.testing.assert_close(logits["eager"], logits["sdpa"], **LOGITS)


@torch.no_grad()
def test_cached_is_uncached(model: MiniChatForConditionalGeneration) -> None:
    """In three steps, with a picture in the first and two in the last, over rows padded on the left."""
    rows = [row(1, 5, "picture", 6, 7, "picture", 9, "picture"), row(1, "picture", 4, 5, "picture", 6, 7, 8, 9, 10)]
    ids, mask = left_padded(rows)
    pixels = pictures(5)
    order = [[0, 1, 2], [3, 4]]
    whole = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    first, second = 6, 8  # both rows have one whole picture before `first`, and none from there to `second`
    cache: Any = None
    pieces = []
    for start, end in ((0, first), (first, second), (second, ids.shape[1])):
        part = ids[:, start:end]
        per_row = ((part == VOCABULARY).sum(-1) // 4).tolist()
        own = [order[r].pop(0) for r, count in enumerate(per_row) for _ in range(count)]
        step = model(
            input_ids=part,
            attention_mask=mask[:, :end],
            pixel_values=pixels[own] if own else None,
            past_key_values=cache,
            use_cache=True,
        )
        cache = step.past_key_values
        pieces.append(step.logits)
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], **LOGITS)


@torch.no_grad()
def test_logits_to_keep(model: MiniChatForConditionalGeneration) -> None:
    ids, mask = left_padded(ROWS)
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(6)}
    labels = ids.masked_fill((ids == VOCABULARY) | (mask == 0), -100)
    labels[:, :-5] = -100
    whole = model(**given, labels=labels)
    torch.testing.assert_close(model(**given, logits_to_keep=3).logits, whole.logits[:, -3:], **LOGITS)
    # A label at T−5 is predicted at T−6: the last six positions, and the very same loss.
    for keep in (6, torch.arange(ids.shape[1] - 6, ids.shape[1])):
        part = model(**given, labels=labels, logits_to_keep=keep)
        assert part.logits.shape[1] == 6
        torch.testing.assert_close(part.loss, whole.loss)


@torch.no_grad()
def test_loss_is_cross_entropy_of_the_next_token(model: MiniChatForConditionalGeneration) -> None:
    ids, mask = left_padded(ROWS)
    labels = ids.masked_fill((ids == VOCABULARY) | (mask == 0), -100)
    labels[0] = -100
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(6), "labels": labels}
    out = model(**given)
    chances = out.logits.log_softmax(-1)
    terms = [
        -chances[r, t - 1, labels[r, t]]
        for r in range(len(ids))
        for t in range(1, ids.shape[1])
        if labels[r, t] != -100
    ]
    torch.testing.assert_close(out.loss, torch.stack(terms).mean())
    torch.testing.assert_close(model(**given, num_items_in_batch=7).loss, torch.stack(terms).sum() / 7)
    assert out.past_key_values is None


@torch.no_grad()
def test_outputs(model: MiniChatForConditionalGeneration) -> None:
    ids = torch.tensor([row(1, "picture", 5)])
    out = model(input_ids=ids, pixel_values=pictures(1), output_hidden_states=True)
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(out.image_features, model.encode_features(pictures(1)))
    assert torch.equal(model(input_ids=ids, image_features=out.image_features).logits, out.logits)
    assert torch.equal(model(input_ids=ids, pixel_values=pictures(1), return_dict=False)[0], out.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_network_can_learn(kind: str) -> None:
    """Its weights are random and of a size that lets gradients through; no two queries are alike."""
    model = MiniChatForConditionalGeneration(tiny_config(kind))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            assert 0.005 < weight.std() < 2, name
    if isinstance(model.bridge, QFormerBridge):
        assert torch.pdist(model.bridge.query_tokens[0]).min() > 0.01


def facts(config: Any) -> Any:
    """A configuration without what loading fills in."""
    loading = ("dtype", "architectures", "_name_or_path", "transformers_version")
    return {k: facts(v) for k, v in config.items() if k not in loading} if isinstance(config, dict) else config


# --- storing and precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_stored_is_loaded(kind: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_network(kind, text={"tie_word_embeddings": tied}, template="minigpt-v2")
    ids, mask = left_padded(ROWS)
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(6)}
    model.save_pretrained(tmp_path)
    loaded, info = MiniChatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for other in (loaded, AutoModelForImageTextToText.from_pretrained(tmp_path)):
        assert isinstance(other, MiniChatForConditionalGeneration)
        assert not other.training
        assert torch.equal(other(**given).logits, model(**given).logits)
        assert facts(other.config.to_dict()) == facts(model.config.to_dict())
        assert other.config.template == "minigpt-v2"
        head, table = other.get_output_embeddings().weight, other.get_input_embeddings().weight
        assert (head is table) == tied
        assert other.generation_config.eos_token_id == 2
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MiniChatConfig)
    stored = {name: weight for name, weight in model.state_dict().items() if not (tied and "lm_head" in name)}
    for name, weight in stored.items():
        assert torch.equal(loaded.state_dict()[name], weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_projection_alone_keeps_float32(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_network(kind)
    ids, mask = left_padded(ROWS)
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(6)}
    model.save_pretrained(tmp_path / "float32")
    low = MiniChatForConditionalGeneration.from_pretrained(tmp_path / "float32", dtype=dtype)
    low.save_pretrained(tmp_path / "low")
    again = MiniChatForConditionalGeneration.from_pretrained(tmp_path / "low", dtype="auto")
    for loaded in (low, again):
        for name, weight in loaded.named_parameters():
            assert weight.dtype == (torch.float32 if name.startswith("projection.") else dtype), name
        assert torch.equal(loaded.projection.weight, model.projection.weight)
        assert loaded.encode_features(pictures(1)).dtype == dtype
        assert loaded.encode_images(pictures(1)).dtype == torch.float32
        out = loaded(**given, labels=ids.masked_fill(ids == VOCABULARY, -100))
        assert out.logits.dtype == dtype
        assert out.loss.dtype == torch.float32
        assert torch.isfinite(out.loss)
        assert loaded.generate(ids, attention_mask=mask, pixel_values=pictures(6), max_new_tokens=2).shape[0] == 5
    wide = MiniChatForConditionalGeneration.from_pretrained(tmp_path / "low", dtype=torch.float32)
    assert {weight.dtype for weight in wide.parameters()} == {torch.float32}


@torch.no_grad()
def test_autocast_leaves_the_projection_in_float32(model: MiniChatForConditionalGeneration) -> None:
    features = model.encode_features(pictures(1))
    whole = model._project(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model._project(features), whole)
        ids = torch.tensor([row(1, "picture", 5)])
        assert torch.isfinite(model(input_ids=ids, pixel_values=pictures(1), labels=ids.clamp(max=49)).loss)


def test_device_map(tmp_path: Path) -> None:
    """accelerate may place the parts; it does not tear a bridge apart."""
    model = tiny_network()
    model.save_pretrained(tmp_path)
    placed = MiniChatForConditionalGeneration.from_pretrained(tmp_path, device_map="auto", max_memory={"cpu": "1GiB"})
    ids = torch.tensor([row(1, "picture", 5)])
    with torch.no_grad():
        logits = placed(input_ids=ids, pixel_values=pictures(1)).logits
        torch.testing.assert_close(logits, model(input_ids=ids, pixel_values=pictures(1)).logits, **LOGITS)
    assert {"QFormerBridge", "Blip2EncoderLayer", "LlamaDecoderLayer"} <= set(model._no_split_modules)


# --- without assertions -----------------------------------------------------------------------------------------

CHECKS = """
import torch
from minichat.errors import ImageError, PromptError
from tests.test_model import mismatches
from tests.tiny_network import ROWS, left_padded, pictures, row, tiny_network

if __debug__:
    raise SystemExit("this must run under -O")
model = tiny_network()
for rows, given, _ in mismatches(model):
    try:
        model(input_ids=torch.tensor(rows), **given)
    except PromptError:
        continue
    raise SystemExit(f"not refused: {rows}")
try:
    model.encode_images(torch.zeros(1, 3, 42, 42))
    raise SystemExit("small pixels were not refused")
except ImageError:
    pass
ids, mask = left_padded(ROWS)
with torch.no_grad():
    batch = model(input_ids=ids, attention_mask=mask, pixel_values=pictures(6)).logits[0, -len(ROWS[0]):]
    single = model(input_ids=torch.tensor(ROWS[:1]), pixel_values=pictures(6)[:1]).logits[0]
if not torch.allclose(batch, single, rtol=0, atol=1e-4):
    raise SystemExit("a batch is not its rows")
prompt = torch.tensor([row(1, "picture", 5, "picture")])
together = model.generate(prompt.repeat(2, 1), pixel_values=pictures(4), num_beams=3, max_new_tokens=5)
alone = model.generate(prompt, pixel_values=pictures(4)[2:], num_beams=3, max_new_tokens=5)
if together[1, : alone.shape[1]].tolist() != alone[0].tolist():
    raise SystemExit("beams with two pictures a row are not one by one")
print("all held")
"""


def test_laws_hold_without_assertions() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-O", "-c", CHECKS], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "all held", done.stderr
