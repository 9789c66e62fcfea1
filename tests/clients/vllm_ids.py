"""What vLLM writes, in its own environment: `python vllm_ids.py FOLDER PROMPTS OUT [DEVICES]`.

`PROMPTS` is a JSON list of prompts, each with `ids` or `text` and the `pictures`' files, or with `messages` in which a
picture is `{"type": "image_pil", "image_pil": FILE}`. `OUT` gets the ids that vLLM read, how many of them were known
the second time, and the greedy ids that it wrote: alone with nothing known, together with nothing known, together
again, and together with a repetition penalty. `DEVICES` is how many share the LLM's tensors, and after a comma its
layers.
"""

import json
import os
import sys
from pathlib import Path

PENALTY = 1.5


def main(folder, prompts, out, devices="1"):
    tensor, _, pipeline = devices.partition(",")
    several = devices != "1"
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if several else "0"
    from PIL import Image
    from vllm import LLM, SamplingParams

    def opened(path):
        return Image.open(path).convert("RGB")

    asked = []
    for prompt in json.loads(Path(prompts).read_text()):
        if "messages" in prompt:
            for part in (part for message in prompt["messages"] for part in message["content"]):
                if part["type"] == "image_pil":
                    part["image_pil"] = opened(part["image_pil"])
            asked.append(prompt["messages"])
            continue
        words = {"prompt_token_ids": prompt["ids"]} if "ids" in prompt else {"prompt": prompt["text"]}
        pictures = [opened(picture) for picture in prompt["pictures"]]
        asked.append({**words, **({"multi_modal_data": {"image": pictures}} if pictures else {})})
    llm = LLM(
        folder,
        dtype="float32",
        max_num_seqs=8,
        max_num_batched_tokens=96,  # so that prompts are read in parts, and pictures over their edges
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        enforce_eager=True,
        limit_mm_per_prompt={"image": 3},
        tensor_parallel_size=int(tensor or 1),
        pipeline_parallel_size=int(pipeline or 1),
    )
    greedy = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}

    def replies(some, **settings):
        write = llm.chat if isinstance(some[0], list) else llm.generate
        return write(some, SamplingParams(**greedy, **settings), use_tqdm=False)

    def ids(some, **settings):
        return [list(reply.outputs[0].token_ids) for reply in replies(some, **settings)]

    def forget():
        llm.reset_mm_cache()
        if not llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use")

    def alone(prompt):
        forget()
        return ids([prompt])[0]

    found = {"alone": [alone(prompt) for prompt in asked]}
    forget()
    first = replies(asked)
    found["together"] = [list(reply.outputs[0].token_ids) for reply in first]
    second = replies(asked)
    found["again"] = [list(reply.outputs[0].token_ids) for reply in second]
    found["penalized"] = ids(asked, repetition_penalty=PENALTY)
    read = [list(reply.prompt_token_ids) for reply in first]
    known = [reply.num_cached_tokens for reply in second]
    Path(out).write_text(json.dumps({"read": read, "known": known, "written": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
