"""What vLLM writes, in its own environment: `python vllm_ids.py FOLDER PROMPTS OUT`.

`PROMPTS` is a JSON list of prompts, each with `ids` or `text`, and the `pictures`' files. `OUT` gets the greedy ids of
all of them: together, together again (known by then), and the first ones alone.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}


def main(folder, prompts, out):
    from PIL import Image
    from vllm import LLM, SamplingParams

    asked = []
    for prompt in json.loads(Path(prompts).read_text()):
        words = {"prompt_token_ids": prompt["ids"]} if "ids" in prompt else {"prompt": prompt["text"]}
        pictures = [Image.open(picture).convert("RGB") for picture in prompt["pictures"]]
        asked.append({**words, **({"multi_modal_data": {"image": pictures}} if pictures else {})})
    most = max(len(prompt.get("multi_modal_data", {}).get("image", ())) for prompt in asked)
    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=96,  # so that prompts are read in parts, and pictures over their edges
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        enforce_eager=True,
        limit_mm_per_prompt={"image": most},
    )
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    def ids(some):
        return [list(reply.outputs[0].token_ids) for reply in llm.generate(some, greedy, use_tqdm=False)]

    together, again = ids(asked), ids(asked)
    alone = [ids([prompt])[0] for prompt in asked[:6]]
    Path(out).write_text(json.dumps({"together": together, "again": again, "alone": alone}))


if __name__ == "__main__":
    main(*sys.argv[1:])
