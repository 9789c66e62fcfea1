"""After `import minichat`, transformers' Auto classes find it, in whatever order things are imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.tiny import noise_picture, tiny_bot

ORDERS = {
    "minichat first": "import minichat, transformers",
    "transformers first": "import transformers, minichat",
    "Auto classes first": "from transformers import AutoModelForImageTextToText, AutoProcessor; import minichat",
    "a part of minichat first": "import minichat.prompt.processor, transformers",
    "the network first": "import minichat.model, transformers",
    "generation first": "import minichat; import transformers.generation.utils",
}

USE = """
import json, sys
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
loaded_early = "minichat.model" in sys.modules
processor = AutoProcessor.from_pretrained(sys.argv[1])
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
from PIL import Image
picture = Image.open(sys.argv[1] + "/../picture.png")
content = [{"type": "image", "image": picture}, {"type": "text", "text": "How many stars are there?"}]
batch = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
)
ids = model.generate(**batch, max_new_tokens=5, do_sample=False)[0].tolist()
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.prompt.processor import MiniChatProcessor
kinds = [type(model) is MiniChatForConditionalGeneration, type(processor) is MiniChatProcessor]
kinds += [type(AutoConfig.from_pretrained(sys.argv[1])) is MiniChatConfig]
print(json.dumps({"ids": ids, "kinds": kinds, "early": loaded_early}))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's folder, with what it generates for a picture."""
    folder = tmp_path_factory.mktemp("saved")
    noise_picture().save(folder / "picture.png")
    bot = tiny_bot()
    bot.model.save_pretrained(folder / "model")
    bot.processor.save_pretrained(folder / "model")
    content = [{"type": "image", "image": noise_picture()}, {"type": "text", "text": "How many stars are there?"}]
    batch = bot.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    return folder / "model", bot.model.generate(**batch, max_new_tokens=5, do_sample=False)[0].tolist()


def in_a_fresh_process(order: str, folder) -> dict:
    done = subprocess.run([sys.executable, "-c", ORDERS[order] + USE, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "order",
    [order if number < 2 else pytest.param(order, marks=pytest.mark.long) for number, order in enumerate(ORDERS)],
)
def test_auto_classes_load_the_same_model_in_every_order_of_imports(order, saved):
    folder, ids = saved
    result = in_a_fresh_process(order, folder)
    assert result["ids"] == ids
    assert all(result["kinds"])
    if order in ("minichat first", "transformers first"):
        assert not result["early"]  # found by name: nothing was imported before it was needed


def test_importing_minichat_imports_nothing_heavy():
    code = (
        "import sys, minichat; from minichat import MiniChatError, errors; "
        "print([name for name in ('torch', 'transformers', 'PIL', 'numpy', 'typer', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there():
    import minichat

    for name in minichat.__all__:
        assert getattr(minichat, name) is not None
        assert name in dir(minichat)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = minichat.lode


def test_load_stays_a_function_when_its_module_is_imported():
    import minichat
    import minichat.inference.load
    from minichat.inference.load import load

    assert minichat.load is load
    assert callable(minichat.load)


def test_transformers_other_models_are_as_they_were():
    from transformers import AutoConfig
    from transformers.models.auto import configuration_auto

    assert AutoConfig.for_model("llama").model_type == "llama"
    # inspect and tracebacks ask a module's loader for its source
    assert configuration_auto.__loader__.get_source(configuration_auto.__name__).startswith("# Copyright")
