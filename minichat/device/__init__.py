"""Where a model can go: what this machine has, what a model needs of it, and in which precision it is put where."""

from typing import Literal, get_args

Precise = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", Precise]  # "auto": what the device and the stored weights suggest
DTYPES: tuple[str, ...] = get_args(Precise)
Quantize = Literal["8bit", "4bit"]
