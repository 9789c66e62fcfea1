"""From a picture and a question to a reply, step by step: `python examples/generate.py scene.png "What is this?"`

`minichat.load(...).chat().ask(...)` gives the same greedy reply. Shapes: T tokens, S pixels of a side, P patches,
n = 32 query tokens; W, D and H are the widths of ViT, Q-Former and LLM; V is the vocabulary.
"""

import argparse

import torch

import minichat


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> list[int]:
    """Print the reply as it is written, and return its token ids, without the end token."""
    parser = argparse.ArgumentParser(description="Ask one question about one picture.")
    parser.add_argument("picture")
    parser.add_argument("question")
    parser.add_argument("--model", default="minichat-tiny")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    options = parser.parse_args(arguments)
    bot = minichat.load(options.model)
    model, processor, tokenizer = bot.model, bot.processor, bot.processor.content_tokenizer

    # Words and picture → ids. The picture's place is n ids that no token has.
    conversation = minichat.Conversation().user(options.question, [minichat.images.load(options.picture)])
    prompt = processor.render(conversation, add_generation_prompt=True)
    ids = torch.tensor([prompt.ids], device=bot.device)  # (1, T); n of them are slots

    # Picture → pixel values → ViT → Q-Former → projection: n tokens in the LLM's embedding space.
    pixels = processor.image_processor(prompt.pictures)["pixel_values"].to(model.device)  # (1, 3, S, S)
    patches = model.vision_model(pixel_values=pixels).last_hidden_state  # (1, 1 + P, W)
    queries = model.bridge(patches)  # (1, n, D): learned queries that read the patches
    image_tokens = model.projection(queries.to(model.projection.weight.dtype))  # (1, n, H), in float32
    # Splice: the embeddings of the words, with the picture's tokens in its n slots.
    embed = model.get_input_embeddings()
    slots = ids == model.config.image_token_index  # (1, T), true n times
    embeds = embed(ids.masked_fill(slots, 0))  # (1, T, H)
    embeds[slots] = image_tokens[0].to(embeds)

    # Greedy decoding. The KV cache holds all that was read, so that each step reads one new token.
    generated: list[int] = []
    cache, shown = None, ""
    while len(generated) < options.max_new_tokens:
        out = model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        token = int(out.logits[0, -1].argmax())  # of (1, 1, V)
        if token in (processor.end_id, tokenizer.eos_id):
            break
        generated.append(token)
        text = tokenizer.decode(generated)
        print(text[len(shown) :], end="", flush=True)
        embeds, shown = embed(ids.new_tensor([[token]])), text  # (1, 1, H)
    print()
    return generated


if __name__ == "__main__":
    main()
