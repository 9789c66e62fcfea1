"""Train `minichat-tiny`, the built-in model, from nothing, on drawn scenes: `python -m minichat.train.tiny --help`.

Two stages, each resumable at its last checkpoint:

1. `see`: ViT and Q-Former learn to name what each patch and each cell of the picture shows (`sight.py`).
2. `talk`: the LLaMA and the projection learn the next token of dialogues about pictures; ViT and Q-Former are frozen.

Matrices are trained with Muon and the rest with AdamW. The learning rate is constant after a warm-up and falls to
zero over the last fifth of a stage, so a stage that has not come so far can be extended. The result is `OUT/model`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.model.freezing import set_trainable
from minichat.prompt.processing import MiniChatProcessor
from minichat.train.tiny.drawn import PATCH, SIDE, TEMPLATE, VOCABULARY, Dialogues, Sights, normalize, train_tokenizer
from minichat.train.tiny.naming import Naming
from minichat.train.tiny.sight import GRID_COLUMNS, GRID_ROWS, IGNORE, QUERIES, SightHeads
from minichat.train.tiny.steps import Stage, run


def tiny_config() -> MiniChatConfig:
    """The shapes of `minichat-tiny`."""
    width = 192
    return MiniChatConfig(
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 6, "num_attention_heads": 4,
            "image_size": SIDE, "patch_size": PATCH,
        },
        bridge_config={
            "kind": "qformer", "num_query_tokens": QUERIES,
            "qformer": {
                "vocab_size": 1, "hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 4,
                "intermediate_size": 4 * width, "cross_attention_frequency": 2,
                "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            },
        },
        text_config={
            "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 688,
            "num_hidden_layers": 6, "num_attention_heads": 4, "max_position_embeddings": 1024,
            "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        template=TEMPLATE,
    )  # fmt: skip


def build(seed: int = 0) -> MiniChatForConditionalGeneration:
    """The untrained model. Patches and the queries' cells start with sines and cosines of their places as positions."""
    torch.manual_seed(seed)
    # Eager attention: at these sizes a step with PyTorch's fused attention took 1.6 times as long on the CPU.
    model = MiniChatForConditionalGeneration._from_config(tiny_config(), attn_implementation="eager")
    embeddings, width = model.vision_model.embeddings, model.config.vision_config.hidden_size
    with torch.no_grad():
        embeddings.class_embedding.normal_(0, 0.02)
        embeddings.position_embedding.zero_()
        embeddings.position_embedding[0, 1:] = 0.3 * place_code(SIDE // PATCH, SIDE // PATCH, width)
        model.bridge.query_tokens.normal_(0, 0.02)
        model.bridge.query_tokens[0, : GRID_COLUMNS * GRID_ROWS] = 0.3 * place_code(GRID_COLUMNS, GRID_ROWS, width)
    return model


def place_code(columns: int, rows: int, width: int) -> Tensor:
    """Sines and cosines of the cells' centres, (rows · columns, width), in raster order."""
    rates = torch.pi * 2.0 ** torch.linspace(0, 4.5, width // 4)  # half a wave over the picture to eleven

    def code(count: int) -> Tensor:
        angles = ((torch.arange(count) + 0.5) / count)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], -1)  # (count, width / 2)

    across = code(columns)[None].expand(rows, -1, -1)
    down = code(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], -1).flatten(0, 1)


def see(out: Path, stage: Stage, seed: int) -> None:
    """Stage 1: ViT and Q-Former learn to name what they look at; leaves `see.pt`."""
    model = build(seed)
    heads = SightHeads(model.config.vision_config.hidden_size, model.config.image_feature_size)

    def loss_of(batch: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
        pixels, truth = batch
        with torch.autocast("cpu", torch.bfloat16):
            patches = model.vision_model(normalize(pixels)).last_hidden_state  # (B, 1 + P, W)
            queries = model.bridge(patches)  # (B, n, D)
            return heads(model.bridge.ln_vision(patches), queries, truth)

    eyes = nn.ModuleDict({"vision_model": model.vision_model, "bridge": model.bridge, "heads": heads})
    run(out, stage, eyes, lambda step: Sights(stage, seed, step), loss_of)


def talk(out: Path, stage: Stage, seed: int) -> None:
    """Stage 2: LLM and projection learn to talk about what the frozen eyes see; leaves `talk.pt`."""
    model = build(seed)
    _load(out / "see.pt", vision_model=model.vision_model, bridge=model.bridge)
    set_trainable(model, ("projection", "language_model"))

    words = train_tokenizer(out, seed)
    naming = Naming(words)

    def loss_of(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                features = model.encode_features(normalize(batch["pixels"]))[: len(batch["names"])]  # (I, n, D)
            output = model(input_ids=batch["ids"], image_features=features, labels=batch["labels"])
        targets = batch["labels"][:, 1:]
        right = (output.logits[:, :-1].argmax(-1) == targets)[targets != IGNORE].float().mean()
        embedding = next(model.get_input_embeddings().parameters())  # (V, H)
        named_loss, named = naming.loss(model.projection(features.float()), embedding, batch["names"])
        figures = {"reply_loss": output.loss.item(), "right": right.item(), "tokens": float(batch["ids"].shape[1])}
        return output.loss + NAMING_SHARE * named_loss, figures | named

    voice = nn.ModuleDict({"projection": model.projection, "language_model": model.language_model})
    run(out, stage, voice, lambda step: Dialogues(stage, seed, step, words), loss_of)


def write(out: Path) -> Path:
    """The model as the checkpoints are, in bfloat16 (the projection in float32), with its processor, as a folder."""
    model = build()
    _load(out / "see.pt", vision_model=model.vision_model, bridge=model.bridge)
    _load(out / "talk.pt", projection=model.projection, language_model=model.language_model)
    for part in (model.vision_model, model.bridge, model.language_model):
        part.to(torch.bfloat16)
    processor = MiniChatProcessor.from_tokenizer_model(
        out / "tokenizer.model", image_size=SIDE, template=TEMPLATE, num_image_tokens=QUERIES
    )
    model.save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    return out / "model"


def _load(checkpoint: Path, **parts: nn.Module) -> None:
    """Put the parts of a checkpoint in place; its others (the heads) are left where they are."""
    stored = torch.load(checkpoint, weights_only=True)["modules"]
    for name, part in parts.items():
        prefix = f"{name}."
        part.load_state_dict({key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)})


NAMING_SHARE = 0.1  # of the loss of naming, beside the replies'
SEE = Stage("see", samples=112_000, batch=32)
TALK = Stage("talk", samples=82_000, batch=16, rate=2e-3, save_every=250)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="where checkpoints and figures go")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--see", type=int, default=SEE.samples, help="pictures of the first stage")
    parser.add_argument("--talk", type=int, default=TALK.samples, help="dialogues of the second stage")
    parser.add_argument("--write", action="store_true", help="only write OUT/model, from the checkpoints as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.write:
        see(arguments.out, replace(SEE, samples=arguments.see), arguments.seed)
        talk(arguments.out, replace(TALK, samples=arguments.talk), arguments.seed)
    print(write(arguments.out))  # noqa: T201 (the one line of data)


if __name__ == "__main__":
    main()
