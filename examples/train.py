"""Fine-tune the projection on a few synthetic scenes, in the open: `python examples/train.py runs/example`

`minichat train` does this with your own data, checkpoints, validation and a learning-rate schedule.
"""

import argparse
import random
from pathlib import Path

import torch

import minichat
from minichat.model.loss import set_trainable
from minichat.toy.captions import listing
from minichat.toy.world import draw, random_scene
from minichat.weights.projection import write_projection

BASE = "minichat-tiny"


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, save the projection as a folder that `minichat.load` opens, and return the loss of each step."""
    parser = argparse.ArgumentParser(description="Teach the projection to list what a synthetic scene holds.")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args(arguments)
    rng = random.Random(0)
    bot = minichat.load(BASE)
    model, processor = bot.model, bot.processor

    # Scenes and captions → conversations → ids and labels. Labels are the ids of the replies, and −100 elsewhere.
    scenes = [random_scene(rng) for _ in range(options.scenes)]
    questions = [minichat.Conversation().user("List the objects.", [draw(scene)]) for scene in scenes]
    examples = [processor.render(q.assistant(listing(s))) for q, s in zip(questions, scenes, strict=True)]

    # Freeze all but the projection: MiniGPT-4's recipe. Frozen parts stay in evaluation mode, without dropout.
    set_trainable(model, ["projection"])
    model.train()
    optimizer = torch.optim.AdamW(model.projection.parameters(), lr=options.lr, weight_decay=0.0)

    losses = []
    for step in range(options.steps):
        batch = processor.batch(rng.sample(examples, options.batch_size), padding_side="right", labels=True)
        loss = model(**batch.to(bot.device)).loss  # next-token cross-entropy, a mean over the supervised tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {step + 1}/{options.steps}: loss {losses[-1]:.3f}")

    write_projection(options.out, model.projection.state_dict(), BASE)
    print(f"Saved. Talk with it: minichat chat --model {options.out}")
    return losses


if __name__ == "__main__":
    main()
