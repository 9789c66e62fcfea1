#!/usr/bin/env bash
# trl 1.16.0: SFTTrainer ends each completion that is a string (columns prompt and completion, not messages) with the
# tokenizer's end token, so that the model learns to stop. If the records have pictures it leaves the data to a collator,
# which adds none: no label is an end, and no line of the log says so. A vision-language model that is trained on
# captions or short answers like that does not learn where they end, and writes on until max_new_tokens.
# Instead: write the end token into each completion (record["completion"] + tokenizer.eos_token), or use messages with a
# chat template that has it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 trl==1.16.0 accelerate==1.15.0 \
    datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6 pillow==12.3.0
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 CUDA_VISIBLE_DEVICES=
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")), sep="\n  ")
words = {word: number for number, word in enumerate("<unk> <pad> </s> what is this : a dog".split())}
made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")
tokenizer.add_tokens(["<image>"], special_tokens=True)
pixels = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
processor = LlavaProcessor(
    pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
)
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
text = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=1, **size)
llama = LlamaForCausalLM(text)
llava = LlavaForConditionalGeneration(
    LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=28, patch_size=14, **size), text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
)


def learnt(model, tools, **record):
    """The tokens that the loss is of, as the trainer makes them of one record."""
    how = SFTConfig("out", use_cpu=True, bf16=False, report_to="none", max_length=None, per_device_train_batch_size=1)
    trainer = SFTTrainer(model, how, train_dataset=Dataset.from_list([record]), processing_class=tools)
    labels = next(iter(trainer.get_train_dataloader()))["labels"][0].tolist()
    return [tokenizer.convert_ids_to_tokens(label) for label in labels if label != -100]


question, answer, picture = "what is this:", " a dog", [Image.new("RGB", (28, 28))]
plain = learnt(llama, tokenizer, prompt=question, completion=answer)
seen = learnt(llava, processor, prompt=f"<image> {question}", completion=answer, images=picture)
mended = learnt(llava, processor, prompt=f"<image> {question}", completion=f"{answer}</s>", images=picture)
print(f"seen without a picture: {plain}\nexpected with a picture: {plain}\nseen with a picture: {seen}")
print(f"seen with a picture and the end written out: {mended}")
described = plain == mended == ["a", "dog", "</s>"] and seen == ["a", "dog"]
print("as described" if described else "CHANGED")
sys.exit(not described)
PYTHON
