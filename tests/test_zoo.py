"""Known models: fetched from a stand-in for the hub, converted once, offline afterwards; what only a person can get is
asked for by name."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.device import memory
from minichat.device.placement import Device, Machine
from minichat.errors import ModelError
from minichat.inference.bot import MiniChat
from minichat.model import MiniChatForConditionalGeneration
from minichat.prompt.template import TEMPLATES
from minichat.weights import hub as places
from minichat.weights import registry
from minichat.weights.convert import convert
from minichat.weights.hub import HubFile
from minichat.weights.known_models import KNOWN, KNOWN_LLMS, WHOLE, KnownModel, PublishedFile, Repository, WholeModel
from minichat.weights.projection import vision_source, write_projection
from minichat.weights.registry import default_model, find
from tests.hub import StandInHub, serving
from tests.published_files import LLM, PROJECTION, QFORMER, VIT, publish, publish_blip2, publish_pickled
from tests.tiny import noise_picture
from tests.tiny_blip2 import publish_whole

ROOT = Path(__file__).resolve().parent.parent
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
ASK: dict[str, Any] = {"images": noise_picture(1), "max_new_tokens": 6}


@dataclass(frozen=True)
class Published:
    """What is published, small: the bots, and the repositories with their files."""

    bots: dict[str, MiniChat]
    repositories: dict[str, Path]
    not_needed: set[str]  # files of the BLIP-2 that hold nothing of its vision side


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    bots = {kind: publish(folder / kind, kind) for kind in ("qformer", "patch_merge")}
    repositories = {name: folder / name.replace("/", "_") for name in ("pub/vicuna", "pub/blip2", "spaces/pub/demo")}
    publish_pickled(bots["qformer"], repositories["pub/vicuna"])
    not_needed = publish_blip2(bots["qformer"], repositories["pub/blip2"])
    repositories["spaces/pub/demo"].mkdir()
    for name in (PROJECTION, QFORMER):
        shutil.copy(folder / "qformer" / name, repositories["spaces/pub/demo"])
    repositories["pub/llama"] = folder / "patch_merge" / LLM
    repositories["pub/other-blip2"] = folder / "other_blip2"
    publish_blip2(bots["patch_merge"], repositories["pub/other-blip2"])
    for name in ("pub/vicuna", "pub/blip2", "pub/llama"):
        (repositories[name] / "code.py").write_text("raise SystemExit")
        (repositories[name] / "README.md").write_text("A card.")
    return Published(bots, repositories, not_needed)


@pytest.fixture
def hub(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """The stand-in, online for this process, with an empty cache and an empty home."""
    from huggingface_hub.utils import close_session

    with serving(StandInHub(dict(published.repositories))) as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MINICHAT_HOME", str(tmp_path / "home"))
        for kind in ("qformer", "patch_merge"):
            model = known(published, kind, served)
            monkeypatch.setitem(KNOWN, model.name, model)
        yield served
        close_session()


def single(folder: Path, name: str, source: HubFile | None) -> PublishedFile:
    content = (folder / name).read_bytes()
    return PublishedFile(
        name, "a licence", f"https://example.org/{name}", len(content), hashlib.sha256(content).hexdigest(), source
    )


def known(published: Published, kind: str, hub: StandInHub) -> KnownModel:
    """A table's entry for what is published: "small-qformer" and "small-patch_merge"."""
    config = published.bots[kind].model.config
    folder = published.repositories["pub/llama"].parent.parent / kind
    demo = "spaces/pub/demo"

    def in_demo(name: str) -> HubFile:
        return HubFile("pub/demo", name, hub.commit(demo), "space")

    joined = kind == "patch_merge"
    return KnownModel(
        name=f"small-{kind}",
        template=config.template,
        licence="none",
        llm=Repository("pub/llama" if joined else "pub/vicuna", "a licence", 100_000),
        projection=single(folder, PROJECTION, None if joined else in_demo(PROJECTION)),
        blip2=Repository("pub/other-blip2" if joined else "pub/blip2", "MIT", 100_000),
        vit=single(folder, VIT, None),
        qformer=None if joined else single(folder, QFORMER, in_demo(QFORMER)),
        folder=1_000_000,
        text=config.text_config.to_dict(),
        vision=config.vision_config.to_dict(),
        bridge={} if joined else {"qformer": config.bridge_config.qformer.to_dict(), "num_query_tokens": 4},
        options={"vision_heads": 2, "qformer_heads": None if joined else 2},
    )


def put(published: Published, kind: str, *names: str) -> Path:
    """Put published files where a person puts them."""
    files = places.files_folder()
    files.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(published.repositories["pub/llama"].parent.parent / kind / name, files)
    return files


def same(bot: MiniChat, other: MiniChat) -> bool:
    ours, theirs = bot.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- once, and offline afterwards


def test_a_known_model_is_fetched_and_converted_once(
    hub: StandInHub, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    bot = minichat.load("small-qformer", device="cpu")
    assert bot.name == "small-qformer"
    assert same(bot, published.bots["qformer"])
    assert bot.chat().ask("What is it?", **ASK) == published.bots["qformer"].chat().ask("What is it?", **ASK)
    assert bot.model.generation_config.eos_token_id == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "small-qformer: fetching" in err
    assert f"small-qformer is in {tmp_path / 'home' / 'small-qformer'}" in err
    fetched = hub.fetched()
    assert published.not_needed
    assert fetched.isdisjoint(published.not_needed)  # the BLIP-2's own LLM
    assert fetched >= {*SHARDS, PROJECTION}
    assert QFORMER not in fetched
    assert not any(name.endswith((".py", ".md")) for name in fetched)
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == [".small-qformer.lock", "small-qformer"]
    reference = json.loads((out_folder() / "config.json").read_text())["llm"]
    assert reference["id"] == "pub/vicuna"
    assert reference["revision"] == hub.commit("pub/vicuna")

    before = list(hub.requests)
    assert same(minichat.load("small-qformer", device="cpu"), bot)
    assert hub.requests == before  # the hub is there, and is not asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(minichat.load("small-qformer", device="cpu"), bot)


def out_folder() -> Path:
    return registry.model_folder(KNOWN["small-qformer"])


def test_the_originals_files_are_taken_where_they_are_put(hub: StandInHub, published: Published) -> None:
    put(published, "qformer", VIT)
    assert same(minichat.load("small-qformer", device="cpu"), published.bots["qformer"])
    assert not any("pub/blip2" in line for line in hub.requests)
    assert QFORMER in hub.fetched()


def test_without_a_qformer_the_vision_encoder_alone_is_taken(hub: StandInHub, published: Published) -> None:
    put(published, "patch_merge", PROJECTION)
    bot = minichat.load("small-patch_merge", device="cpu")
    assert same(bot, published.bots["patch_merge"])
    assert bot.model.config.bridge_config.kind == "patch_merge"


def test_a_connection_that_breaks_is_taken_up_again(
    hub: StandInHub, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what came is kept so far
    size = (published.repositories["pub/vicuna"] / SHARDS[0]).stat().st_size
    hub.drop_after[SHARDS[0]] = size // 2
    assert same(minichat.load("small-qformer", device="cpu"), published.bots["qformer"])
    asked = [re.search(r"bytes=(\d+)-", line) for line in hub.requests if SHARDS[0] in line and "bytes=" in line]
    assert [0 < int(found[1]) <= size // 2 for found in asked if found] == [True]


# --- what came is what was published


@pytest.mark.parametrize("file", ["shard of the LLM", "file of the BLIP-2", "projection"])
def test_a_file_that_was_changed_on_the_way_is_refused(hub: StandInHub, published: Published, file: str) -> None:
    shards = {path.name for path in published.repositories["pub/blip2"].glob("model-*")} - published.not_needed
    name = {"shard of the LLM": SHARDS[1], "file of the BLIP-2": max(shards), "projection": PROJECTION}[file]
    hub.falsified.add(name)
    with pytest.raises(ModelError, match=rf"{name} .* its SHA-256 begins with \w{{12}}, not \w{{12}}"):
        minichat.load("small-qformer", device="cpu")
    assert not out_folder().exists()
    hub.falsified.clear()
    hub.requests.clear()
    assert same(minichat.load("small-qformer", device="cpu"), published.bots["qformer"])
    assert name in hub.fetched()  # it was not kept


def test_a_file_that_came_short_is_refused(
    hub: StandInHub, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut.add(SHARDS[0])
    with pytest.raises(ModelError, match="'pub/vicuna' did not come whole"):
        minichat.load("small-qformer", device="cpu")
    hub.cut.clear()
    assert same(minichat.load("small-qformer", device="cpu"), published.bots["qformer"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"<!DOCTYPE html>", "it has 15 bytes, not [0-9,]+"),
        (lambda content: content[:-1], "bytes, not"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), r"its SHA-256 begins with \w{12}, not \w{12}"),
    ],
    ids=["web page", "cut off", "changed"],
)
def test_a_wrong_file_that_a_person_put_there_is_refused(
    hub: StandInHub, published: Published, spoil: Callable[[bytes], bytes], message: str
) -> None:
    file = put(published, "patch_merge", PROJECTION) / PROJECTION
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ModelError, match=f"{PROJECTION} is not {PROJECTION} as it was published: .*{message}"):
        minichat.load("small-patch_merge")
    assert hub.requests == []
    assert file.exists()


def test_a_file_whose_hash_is_not_known_is_checked_by_the_conversion(
    hub: StandInHub, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KNOWN["small-patch_merge"]
    unknown = replace(model, projection=replace(model.projection, size=None, sha256=None))
    monkeypatch.setitem(KNOWN, model.name, unknown)
    (put(published, "patch_merge") / PROJECTION).write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ModelError, match=f"{PROJECTION} is a web page"):
        minichat.load(model.name)
    put(published, "qformer", PROJECTION)  # of another model
    with pytest.raises(ModelError, match="takes features of width 24"):
        minichat.load(model.name)


# --- what only a person can get


def test_all_that_only_a_person_can_get_is_asked_for_at_once(hub: StandInHub, published: Published) -> None:
    hub.gated.add("pub/llama")
    with pytest.raises(ModelError) as caught:
        minichat.load("small-patch_merge")
    said, files = str(caught.value), places.shown(places.files_folder())
    size = KNOWN["small-patch_merge"].projection.size
    assert said == (
        "'small-patch_merge' needs what cannot be fetched for you; nothing was downloaded yet. "
        f"(1) Download {PROJECTION} ({size / 1e6:.3g} MB) from https://example.org/{PROJECTION} and put it into "
        f"{files}. (2) Accept the licence of pub/llama at {hub.address}/pub/llama and log in with `hf auth login`, or "
        f"put its folder there as {files}/llama."
    )
    assert hub.fetched() <= {"config.json", "model.safetensors.index.json"}
    put(published, "patch_merge", PROJECTION)
    shutil.copytree(published.repositories["pub/llama"], places.files_folder() / "llama")
    assert same(minichat.load("small-patch_merge", device="cpu"), published.bots["patch_merge"])


def test_what_the_hub_has_no_more_is_asked_for(hub: StandInHub, published: Published) -> None:
    for name in ("spaces/pub/demo", "pub/vicuna"):
        del hub.repositories[name]
    with pytest.raises(ModelError, match=rf"\(1\) Download {PROJECTION} .* \(2\) Get pub/vicuna, which the hub does"):
        minichat.load("small-qformer")


def test_a_gated_llm_says_so_to_convert_too(hub: StandInHub, published: Published, tmp_path: Path) -> None:
    hub.gated.add("pub/vicuna")
    result = run_convert(published, tmp_path)
    assert result.exit_code == 1
    assert "'pub/vicuna' to those alone who have accepted its licence" in result.stderr
    assert "hf auth login" in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_network(hub: StandInHub, published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=rf"\(1\) The hub cannot be reached: go online once, or: Download {PROJECTION}"
    ):
        minichat.load("small-qformer")
    put(published, "qformer", PROJECTION)
    with pytest.raises(ModelError, match=r"'pub/blip2' is not there: .* the hub cannot be reached: go online once"):
        minichat.load("small-qformer")
    assert hub.requests == []


def test_a_home_that_cannot_be_written(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINICHAT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(
        ModelError, match=r"'small-qformer' cannot be kept in .* \(Not a directory\): set MINICHAT_HOME"
    ):
        minichat.load("small-qformer")


def test_a_memory_that_is_too_small(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Is said before anything is fetched, and for a projection that belongs to a known model, too."""
    trained = write_projection(
        tmp_path / "trained", {"weight": torch.ones(40, 24), "bias": torch.ones(40)}, "small-qformer"
    )
    shutil.rmtree(out_folder())
    hub.requests.clear()
    monkeypatch.setattr(memory, "look", lambda device=None: Machine((Device("cpu", "processor", 2**30, 1000),)))
    for name in ("small-qformer", trained):
        with pytest.raises(ModelError, match=r"'small-qformer' needs about .* of memory in float32, but 0.00 GiB is"):
            minichat.load(name, device="cpu")
    assert hub.requests == []
    assert not out_folder().exists()
    monkeypatch.setenv(memory.IGNORE, "1")
    minichat.load("small-qformer", device="cpu")


def test_a_disk_that_is_too_small(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"'small-qformer' needs \d+\.?\d* MB on the disk of .*, and 2 MB are free"):
        minichat.load("small-qformer")
    assert hub.fetched() <= {"config.json", "model.safetensors.index.json"}


# --- processes

CHILD = """
import pickle, sys
from minichat.weights.registry import fetch
print(fetch(pickle.loads(bytes.fromhex(sys.argv[1]))))
"""


def start(model: KnownModel, hub: StandInHub, tmp_path: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "MINICHAT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, pickle.dumps(model).hex()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_process_makes_it_and_the_next_goes_on_where_it_was_killed(
    hub: StandInHub, published: Published, tmp_path: Path
) -> None:
    """The first is killed in the midst of a file, while two others wait: one of them goes on, the other finds it."""
    hub.held[SHARDS[1]] = threading.Event()
    model = KNOWN["small-qformer"]
    first = start(model, hub, tmp_path)
    until(lambda: SHARDS[1] in hub.fetched(), first)
    others = [start(model, hub, tmp_path) for _ in range(2)]
    errors = [until_it_says(other, "waiting for it") for other in others]
    first.kill()
    first.communicate()
    hub.held.pop(SHARDS[1]).set()
    hub.requests.clear()
    ends = [other.communicate(timeout=200) for other in others]
    assert [other.returncode for other in others] == [0, 0], ends
    assert {out.strip() for out, _ in ends} == {str(out_folder())}
    said = [before + after for before, (_, after) in zip(errors, ends, strict=True)]
    assert sum("Writing ..." in text for text in said) == 1
    assert SHARDS[1] in hub.fetched()
    assert SHARDS[0] not in hub.fetched()  # it was whole
    assert same(minichat.load("small-qformer", device="cpu"), published.bots["qformer"])
    assert not [name for name in tree(tmp_path / "home") if "unfinished" in name]


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(12000):
        if true():
            return
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


def until_it_says(process: subprocess.Popen[str], text: str) -> str:
    said = ""
    assert process.stderr
    while text not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


# --- hub ids of one's own


def run_convert(published: Published, tmp_path: Path) -> Any:
    projection = published.repositories["spaces/pub/demo"] / PROJECTION
    arguments = ["convert", "--out", tmp_path / "out", "--projection", projection, "--template", "vicuna-v0"]
    arguments += ["--llm", "pub/vicuna", "--blip2", "pub/blip2"]
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_convert_takes_hub_ids(
    hub: StandInHub, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_convert(published, tmp_path)
    assert result.exit_code == 0, result.output
    assert hub.fetched().isdisjoint(published.not_needed)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(minichat.load(tmp_path / "out", device="cpu"), published.bots["qformer"])


def test_a_whole_model_on_the_hub(
    hub: StandInHub, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot, folder = published.bots["patch_merge"], tmp_path / "whole"
    bot.model.save_pretrained(folder)
    bot.processor.save_pretrained(folder)
    hub.repositories["me/whole"] = folder
    assert same(minichat.load("me/whole", device="cpu"), bot)
    with pytest.raises(ModelError, match=r"There is no model 'me/hole': .* the hub has no such repository"):
        minichat.load("me/hole")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(minichat.load("me/whole", device="cpu"), bot)


def test_a_projection_refers_to_a_known_model_by_its_name(hub: StandInHub, tmp_path: Path) -> None:
    folder = write_projection(
        tmp_path / "trained", {"weight": torch.ones(40, 24), "bias": torch.ones(40)}, "small-qformer"
    )
    assert json.loads((folder / "minichat.json").read_text())["base"] == {"name": "small-qformer"}
    assert minichat.load(folder, device="cpu").model.projection.bias.tolist() == [1.0] * 40


# --- the table


def test_a_name_that_is_not_known_lists_what_is_close() -> None:
    for name, close in [
        ("minigpt4-vicuna", "did you mean 'minigpt4-vicuna-7b' or 'minigpt4-vicuna-13b'"),
        ("MiniGPT4-Llama2-7B", "did you mean 'minigpt4-llama2-7b'"),
        ("tiny", "did you mean 'minichat-tiny'"),
        (
            "xyz",
            "minichat-tiny, minichat-small, minichat-tiny-stage1, smollm2-135m-instruct, "
            f"{', '.join(WHOLE)}, minigpt4-vicuna-7b, minigpt4-vicuna-13b, minigpt4-llama2-7b",
        ),
        ("", f"minichat-tiny, minichat-small, minichat-tiny-stage1, smollm2-135m-instruct, {', '.join(WHOLE)}, "),
    ]:
        with pytest.raises(ModelError, match=f"no known name .{re.escape(close)}"):
            find(name)


@pytest.mark.parametrize("model", KNOWN.values(), ids=lambda model: model.name)
def test_the_table_agrees_with_itself(model: KnownModel) -> None:
    from minichat.weights.convert import _wanted

    config = model.config()
    wanted = {name: torch.Size(shape).numel() for name, shape in _wanted(config).items()}
    assert 0.99 < 4 * sum(wanted.values()) / model.folder <= 1  # at the most: in float32
    assert model.template in TEMPLATES
    # What a training run saved: the projection in float32, and AdamW's two moments of it.
    projection = 4 * sum(size for name, size in wanted.items() if name.startswith("projection."))
    assert 1 < (model.projection.size or 0) / (3 * projection) < 1.01
    for file in (model.projection, model.vit, model.qformer):
        if file is not None:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256 or "")
            assert file.hub is None or re.fullmatch("[0-9a-f]{40}", file.hub.revision)


@pytest.mark.parametrize("model", WHOLE.values(), ids=lambda model: model.name)
def test_the_table_of_whole_models_agrees_with_itself(model: WholeModel) -> None:
    from minichat.weights.convert import _wanted

    config = model.config()
    own = sum(torch.Size(shape).numel() for shape in _wanted(config).values())
    assert 0.99 < 4 * own / model.folder <= 1
    with torch.device("meta"):
        network = MiniChatForConditionalGeneration(config)
    whole = sum(weight.numel() for weight in network.parameters())
    if config.is_encoder_decoder:  # FLAN-T5's output layer is not its embedding, as transformers 5 makes it
        whole += config.text_config.vocab_size * config.text_config.hidden_size
    assert 0.99 < 4 * whole / model.repository.size < 1.01
    page = (ROOT / "docs" / "MODELS.md").read_text()
    assert f"| `{model.name}` | `{model.repository.id}`, {places.gigabytes(model.repository.size)} |" in page
    assert f"| `{model.template}` |" in page


def test_a_whole_blip2_of_the_hub(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id: fetched, its vision side taken in once, its LLM left in the hub's cache; offline afterwards."""
    hub.repositories["pub/whole"] = publish_whole(tmp_path / "whole", "opt")
    bot = minichat.load("pub/whole", device="cpu")
    said = bot.caption([noise_picture(1)], max_new_tokens=5)
    stored = json.loads((find("pub/whole") / "config.json").read_text())
    assert stored["llm"]["id"] == "pub/whole"
    assert re.fullmatch("[0-9a-f]{40}", stored["llm"]["revision"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert minichat.load("pub/whole", device="cpu").caption([noise_picture(1)], max_new_tokens=5) == said
    assert len(hub.requests) == asked


def test_the_page_says_what_the_table_says() -> None:
    page = (ROOT / "docs" / "MODELS.md").read_text()
    for model in KNOWN.values():
        assert f"| `{model.name}` | `{model.llm.id}`, {places.gigabytes(model.llm.size)} |" in page
        for file in (model.projection, model.vit, model.qformer):
            if file is not None:
                (row,) = (line for line in page.splitlines() if line.startswith(f"| `{file.name}`"))
                size = "not recorded" if file.size is None else f"{file.size:,}"
                assert row.endswith(f"| {size} | `{str(file.sha256)[:12]}…` |")
                assert file.page in row
                assert file.hub is None or f"`{file.hub.repository}`" in row


def test_the_page_says_how_much_memory_each_needs() -> None:
    page = (ROOT / "docs" / "MODELS.md").read_text()
    for entry in registry.catalogue():
        if entry.name in (*KNOWN, *WHOLE):
            needs = " / ".join(memory.gib(size).removesuffix(" GiB") for size in entry.memory.values())
            assert any(row.startswith(f"| `{entry.name}` |") and f"| {needs} |" in row for row in page.splitlines()), (
                f"{entry.name}: {needs}"
            )


def test_models_lists_them(hub: StandInHub, published: Published, tmp_path: Path) -> None:
    def rows() -> dict[str, dict[str, Any]]:
        result = CliRunner().invoke(cli.app, ["models", "--json"])
        assert result.exit_code == 0, result.output
        return {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}

    before = rows()
    finders = [name for name in registry.BUILT_IN_STAGE1 if (registry.ASSETS / name).is_dir()]
    built_in = ["minichat-tiny", *finders]  # the LLM of minichat-small is not
    assert list(before) == ["minichat-tiny", "minichat-small", *finders, *KNOWN_LLMS, *WHOLE, *KNOWN]
    assert [name for name, row in before.items() if row["here"]] == built_in
    large = before["minigpt4-vicuna-7b"]
    assert large["disk"] == large["download"] + KNOWN["minigpt4-vicuna-7b"].folder
    assert 13e9 < large["memory"]["4bit"] * 2 < large["memory"]["bfloat16"] * 1.1
    assert [part["source"] for part in large["parts"] if part["instead"]] == [
        "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"
    ]  # fmt: skip
    assert hub.requests == []
    find("small-qformer")
    assert [name for name, row in rows().items() if row["here"]] == [*built_in, "small-qformer"]
    shown = CliRunner().invoke(cli.app, ["models"])
    assert "minigpt4-llama2-7b: not fetched yet\n  template    llama2\n" in shown.stdout
    assert "small-qformer: here\n" in shown.stdout
    assert str(tmp_path / "home" / "files") in shown.stderr


def test_auto_is_the_model_that_needs_no_download_where_there_is_no_llm() -> None:
    assert default_model() == "minichat-tiny"
    assert find("auto") == find("minichat-tiny")
    assert minichat.load(device="cpu").name == "minichat-tiny"


def test_a_model_of_ours_lends_its_vision_side_to_another_llm(published: Published, tmp_path: Path) -> None:
    """Nothing of it changes on the way, and a random projection stands where another was trained."""
    llm = published.repositories["pub/vicuna"]
    made = convert(tmp_path / "made", blip2=vision_source("minichat-tiny"), llm=str(llm), template="vicuna-v0")
    own, lent = (load_file(folder / "model.safetensors") for folder in (find("minichat-tiny"), made))
    side = {name for name in own if name.startswith(("vision_model.", "bridge."))}
    assert side == {name for name in lent if not name.startswith("projection.")}
    assert all(torch.equal(own[name], lent[name]) for name in side)
    seen = [minichat.load(name, device="cpu").encode([noise_picture(1)]) for name in (made, "minichat-tiny")]
    assert torch.equal(*seen)
