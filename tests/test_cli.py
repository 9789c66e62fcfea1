"""The command line: what each subcommand prints, where, and the exit code."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.errors import ModelError

ROOT = Path(__file__).resolve().parent.parent
MINICHAT = [sys.executable, "-m", "minichat"]

# A `minichat` whose bot is a fake, for what needs a process of its own. `SLOW` seconds pass with each caption.
FAKE = """
import os, sys, time
from minichat import cli

class Bot:
    caption_prompt = "Describe it."

    def caption(self, pictures, prompt=None, batch_size=8, **settings):
        print("captioning", file=sys.stderr, flush=True)
        time.sleep(float(os.environ.get("SLOW", "0")))
        return ["a picture"] * len(pictures)

    def chat(self, **settings):
        from tests.test_terminal import FakeSession
        return FakeSession()

sys.modules["minichat.cli.chat"].load_bot = lambda *arguments: Bot()
cli.main()
"""


class FakeBot:
    name = "fake"
    caption_prompt = "Describe it."

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.chats: list[dict] = []

    def caption(self, pictures, **settings):
        self.calls.append({"count": len(pictures), **settings})
        return [f"{picture.width} wide" for picture in pictures]

    def chat(self, **settings):
        from tests.test_terminal import FakeSession

        self.chats.append(settings)
        return FakeSession()


@pytest.fixture
def bot(monkeypatch):
    """The bot that every command loads; `bot.loaded` is what it was asked to load."""
    fake = FakeBot()
    fake.loaded = []

    def load(name, device="auto", dtype="auto", **options):
        fake.loaded.append((name, device, dtype, *options.items()))
        if name == "absent":
            raise ModelError("There is no model 'absent': check the name.")
        return fake

    monkeypatch.setattr(import_module("minichat.inference.load"), "load", load)  # `minichat.load` is the function
    return fake


def run(*arguments: str | Path, **options):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], **options)


@pytest.fixture
def folder(tmp_path):
    """Two pictures and a file that is none."""
    shots = tmp_path / "shots"
    shots.mkdir()
    for width in (3, 4):
        Image.new("RGB", (width, 2)).save(shots / f"{width}.png")
    (shots / "broken.jpg").write_text("nothing")
    return shots


# --- help and usage


def test_help_answers_in_under_a_second():
    assert min(seconds_of_help() for _ in range(3)) < 1


def seconds_of_help() -> float:
    """Processor time, which a busy machine does not lengthen; there is nothing in it to wait for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*MINICHAT, "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "caption" in done.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['minichat', 'caption', '--help']\n"
        "from minichat import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "print([n for n in ('torch', 'transformers', 'gradio', 'PIL', 'numpy', 'rich') if n in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


COMMANDS = [
    ["chat"],
    ["demo"],
    ["serve"],
    ["caption"],
    ["search"],
    ["convert"],
    ["new"],
    ["export"],
    ["models"],
    ["doctor"],
    ["teach"],
    ["train"],
    ["evaluate"],
    ["data"],
    ["data", "scenes"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert re.search(r"Usage: .*" + " ".join(command), result.stdout)


def test_the_commands_are_these():
    listed = set(re.findall(r"^  ([a-z]+)  ", run("--help").stdout.split("Commands:")[1], re.M))
    assert listed == {command[0] for command in COMMANDS}


@pytest.mark.parametrize("option", ["--model", "--device", "--dtype", "--quantize", "--device-map", "--verify"])
def test_model_device_and_dtype_are_the_same_everywhere(option):
    helps = [run(command, "--help", env={"COLUMNS": "200"}).stdout for command in ("chat", "demo", "caption")]
    spelled = [" ".join(re.search(rf"{option} .*", text)[0].split()) for text in helps]
    assert spelled == spelled[:1] * 3


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["caption"], ["caption", "a", "--nonsense"], ["chat", "--dtype", "float8"], ["data", "scenes"],
     ["caption", "a", "--batch-size", "x"], ["--nonsense"], ["chat", "--seed", "1.5"]],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors_exit_with_2(arguments, bot):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert bot.loaded == []


def test_version():
    assert run("--version").stdout == f"minichat {minichat.__version__}\n"


# --- caption


def test_caption_writes_a_line_for_each_picture(bot, folder):
    result = run("caption", folder)
    assert result.exit_code == 3
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row.get("caption") for row in rows] == ["3 wide", "4 wide", None]
    assert [Path(row["image"]).resolve() for row in rows] == [folder / n for n in ("3.png", "4.png", "broken.jpg")]
    assert not any(os.path.isabs(row["image"]) for row in rows)  # as seen from the current folder
    assert "not a picture" in rows[2]["error"]
    assert result.stderr == "The model is minichat-tiny.\n3 pictures: 2 captioned, 1 failed.\n"


def test_caption_exits_with_0_when_all_went_well(bot, folder):
    result = run("caption", folder / "3.png", folder / "4.png")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2


def test_caption_to_a_file(bot, folder, tmp_path):
    out = tmp_path / "captions.jsonl"
    assert run("caption", folder / "4.png", "--out", out).stdout == ""
    before = out.read_bytes()
    assert json.loads(before) == {"image": os.path.join("shots", "4.png"), "caption": "4 wide"}
    again = run("caption", folder / "4.png", "--out", out)
    assert again.exit_code == 0
    assert out.read_bytes() == before


def test_caption_leaves_no_empty_file_when_the_model_is_absent(bot, folder, tmp_path):
    out = tmp_path / "captions.jsonl"
    result = run("caption", folder, "--out", out, "--model", "absent")
    assert result.exit_code == 1
    assert result.stderr == "minichat: There is no model 'absent': check the name.\n"
    assert not out.exists()


def test_caption_finds_out_first_whether_it_can_write(bot, folder, tmp_path):
    result = run("caption", folder, "--out", tmp_path / "no" / "folder.jsonl")
    assert result.exit_code == 1
    assert "cannot be made (No such file or directory)" in result.stderr
    assert bot.loaded == []


def test_settings_and_model_are_passed_on_and_defaults_are_left_to_the_library(bot, folder):
    run("caption", folder / "3.png")
    options = ["--model", "m", "--device", "cuda:1", "--dtype", "float16", "--prompt", "Look.", "--batch-size", "2"]
    options += ["--max-new-tokens", "9", "--temperature", "0.5", "--top-p", "0.9", "--num-beams", "1"]
    options += ["--quantize", "4bit", "--device-map", "auto", "--verify"]
    run("caption", folder / "3.png", *options, "--repetition-penalty", "1.5", "--seed", "7")
    placed = [("quantize", "4bit"), ("device_map", "auto"), ("verify", True)]
    assert bot.loaded == [("minichat-tiny", "auto", "auto"), ("m", "cuda:1", "float16", *placed)]
    assert bot.calls[0] == {"count": 1, "prompt": None, "batch_size": 1}
    assert bot.calls[1] == {
        "count": 1, "prompt": "Look.", "batch_size": 1, "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9,
        "num_beams": 1, "repetition_penalty": 1.5, "seed": bot.calls[1]["seed"],
    }  # fmt: skip
    assert len(bot.calls[1]["seed"]) == 1 and isinstance(bot.calls[1]["seed"][0], int)  # one for each picture


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", FAKE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_stopping_leaves_whole_lines(folder, tmp_path, number, code):
    out = tmp_path / "captions.jsonl"
    process = start("caption", folder, "--batch-size", "1", "--out", out, SLOW="0.3")
    assert process.stderr.readline() == "The model is minichat-tiny.\n"
    for _ in range(2):
        assert process.stderr.readline() == "captioning\n"
    process.send_signal(number)  # in the second picture, so the first one's line is there
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert [json.loads(line)["image"] for line in out.read_text().splitlines()] == ["shots/3.png"]
    assert f"1 of 3 pictures have their rows in '{out}', which is kept; the next is '{folder / '4.png'}'." in errors
    assert errors.count("\n") <= 4, errors


def test_stopping_before_the_first_caption_leaves_nothing(folder, tmp_path):
    out = tmp_path / "captions.jsonl"
    process = start("caption", folder, "--out", out, SLOW="9")
    assert process.stderr.readline() == "The model is minichat-tiny.\n"
    assert process.stderr.readline() == "captioning\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "minichat: Stopped: nothing was written." in errors
    assert not out.exists()


def test_paths_are_seen_from_the_outputs_folder(bot, folder, tmp_path, monkeypatch):
    """So every reader of ours, which looks beside the file, takes it as it is; also where folders are links.

    A name that is no UTF-8 is shown with an escape: no reader would open the file with it.
    """
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "shown").symlink_to(folder)
    odd = ["two\nlines.png", "码.png", os.fsdecode(b"not\xffutf8.png")]
    for name in odd:
        Image.new("RGB", (5, 2)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    inputs = ["shots/3.png", "shown/4.png", "link/../../shots/4.png", tmp_path / "shots" / "broken.jpg", *odd]
    for out in ("far/a.jsonl", "link/b.jsonl", "c.jsonl"):
        assert run("caption", *inputs, "--out", out).exit_code == 3
        rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
        assert len(rows) == len(inputs)
        for row, given in zip(rows, inputs, strict=True):
            assert not os.path.isabs(row["image"])
            if given == odd[-1]:
                assert row["image"].endswith(r"not\udcffutf8.png")
            else:
                assert os.path.samefile(Path(out).parent / row["image"], given)
    assert [json.loads(line)["image"] for line in Path("c.jsonl").read_text().splitlines()][:2] == [
        os.path.join("shots", "3.png"),
        os.path.join("shown", "4.png"),
    ]
    (row,) = map(json.loads, run("caption", "shots/3.png", "--absolute").stdout.splitlines())
    assert row["image"] == str(folder / "3.png")


def test_data_takes_what_caption_wrote(bot, folder, tmp_path):
    (tmp_path / "out").mkdir()
    run("caption", folder / "3.png", folder / "4.png", "--out", tmp_path / "out" / "captions.jsonl")
    checked = run("data", "check", tmp_path / "out" / "captions.jsonl")
    assert checked.exit_code == 0, checked.output
    assert "Records: 2. Good: 2." in checked.stdout


def test_a_caption_that_is_cut_off_is_marked_and_counted(bot, folder, monkeypatch):
    from minichat.inference.bot import Caption

    said = iter((Caption("It is red and", "length"), Caption("It is red.")))
    monkeypatch.setattr(bot, "caption", lambda pictures, **settings: [next(said) for _ in pictures])
    result = run("caption", folder / "3.png", folder / "4.png", "--max-new-tokens", "4")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row.get("finish") for row in rows] == ["length", None]
    summary = 'Cut off after 4 tokens, and marked "finish": "length": 1. --max-new-tokens allows more.'
    assert "2 pictures: 2 captioned, 0 failed.\n" + summary in result.stderr


def test_a_reader_that_leaves_is_no_traceback(folder):
    process = start("caption", folder, "--batch-size", "1", SLOW="0.2")
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_full_disk_is_one_line(folder):
    done = subprocess.run(
        [sys.executable, "-c", FAKE, "caption", str(folder)],
        stdout=open("/dev/full", "wb"),  # noqa: SIM115
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "minichat: The captions cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


# --- chat


def test_chat_answers_a_pipe(bot, folder):
    result = run("chat", folder / "3.png", "--temperature", "0.7", "--seed", "1", input="What is it?\n/quit\n")
    assert result.exit_code == 0
    assert result.stdout == "Said 'What is it?', 1 pictures.\n"
    assert bot.chats == [{"temperature": 0.7, "seed": 1}]


def test_chat_says_when_a_line_of_a_pipe_failed(bot):
    result = run("chat", input="/image absent.png\nHello\n")
    assert result.exit_code == 3
    assert result.stdout == "Said 'Hello', 0 pictures.\n"
    assert "! “absent.png” was not found" in result.stderr


def test_chat_with_a_picture_that_is_none(bot, folder):
    result = run("chat", folder / "broken.jpg", input="Hello\n")
    assert result.exit_code == 1
    assert "minichat: “broken.jpg” is not a picture" in result.stderr


# --- demo and data


def test_demo_serves_what_was_built_until_it_is_stopped(bot, monkeypatch):
    from minichat import web

    seen = []

    class Running:
        url = "http://127.0.0.1:7999"

        def wait(self):
            raise KeyboardInterrupt

    def launch(page, host, port):
        seen.append((page, host, port))
        return Running()

    # Into the namespace itself: to look up what is replaced would import Gradio.
    monkeypatch.setitem(vars(web), "build_app", lambda bot, owned: (bot, str(owned.folder), owned.keyed))
    monkeypatch.setitem(vars(web), "launch", launch)
    result = run("demo", "--port", "7999", "--set", "mine")
    assert result.exit_code == 130
    assert seen == [((bot, "mine", False), "127.0.0.1", 7999)]
    assert "http://127.0.0.1:7999" in result.stderr


def test_serve_takes_its_key_from_a_file_or_the_environment(bot, monkeypatch, tmp_path):
    from minichat.serve import app, server

    seen = []
    monkeypatch.setattr(app, "build_app", lambda bot, **options: seen.append(options))
    monkeypatch.setattr(server, "serve", lambda app, listening: listening.close())
    monkeypatch.delenv("MINICHAT_API_KEY", raising=False)
    (tmp_path / "key").write_text("from-a-file\n")
    result = run("serve", "--port", "0", "--name", "mine", "--queue", "3")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"mine is served at http://127\.0\.0\.1:\d+/v1 ", result.stderr)
    assert "may use it" in run("serve", "--port", "0", "--host", "0.0.0.0").stderr
    assert "add --page" in run("serve", "--port", "0", "--also", "minichat-small").stderr
    monkeypatch.setenv("MINICHAT_API_KEY", "from-the-environment")
    run("serve", "--port", "0", "--allow-image-host", "a.example", "--allow-origin", "https://b.example")
    run("serve", "--port", "0", "--api-key-file", tmp_path / "key")
    assert [options["key"] for options in seen] == [None, None, "from-the-environment", "from-a-file"]
    assert (seen[0]["limits"].queue, seen[2]["image_hosts"], seen[2]["origins"]) == (
        3,
        ["a.example"],
        ["https://b.example"],
    )
    for wrong in ("", "two words", "schlüssel"):
        monkeypatch.setenv("MINICHAT_API_KEY", wrong)
        result = run("serve", "--port", "0")
        assert result.exit_code == 1 and "MINICHAT_API_KEY" in result.stderr
    result = run("serve", "--api-key-file", tmp_path / "none")
    assert result.exit_code == 1 and "cannot be read" in result.stderr
    assert len(seen) == 4


def test_data_scenes_writes_a_data_set(tmp_path):
    result = run("data", "scenes", "--count", "3", "--out", tmp_path / "scenes", "--seed", "5", "--size", "48")
    assert result.exit_code == 0, result.stderr
    pictures = list((tmp_path / "scenes").rglob("*.png"))
    assert pictures
    assert Image.open(pictures[0]).size == (48, 48)
    refused = run("data", "scenes", "--count", "0", "--out", tmp_path / "none")
    assert refused.exit_code == 1
    assert "count" in refused.stderr
    assert not (tmp_path / "none").exists()


# --- the package


def requirement_lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def test_ranges_are_the_same_in_both_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name not in ("vllm", "ray")}
    listed = project["dependencies"] + [need for needs in extras.values() for need in needs]
    assert sorted(requirement_lines(ROOT / "requirements.txt")) == sorted(set(listed))  # two groups may need the same


def test_tested_versions_lie_in_the_ranges():
    from packaging.requirements import Requirement

    exact = dict(line.lower().replace("_", "-").split("==") for line in requirement_lines(ROOT / "constraints.txt"))
    for line in requirement_lines(ROOT / "requirements.txt"):
        need = Requirement(line)
        assert need.specifier.contains(exact[need.name.lower()]), line
    assert not any("+" in version for version in exact.values())


def test_one_definition_of_the_version():
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", minichat.__version__)


# --- the whole way, with a real model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model with random weights."""
    from tests.tiny import tiny_bot

    folder = tmp_path_factory.mktemp("model")
    bot = tiny_bot()
    bot.model.save_pretrained(folder)
    bot.processor.save_pretrained(folder)
    return folder


def test_caption_and_chat_with_a_real_model(model, folder):
    captioned = run("caption", folder, "--model", model, "--max-new-tokens", "4", "--device", "cpu")
    assert captioned.exit_code == 3, captioned.stderr
    rows = [json.loads(line) for line in captioned.stdout.splitlines()]
    loaded = minichat.load(model)
    assert [row.get("caption") for row in rows[:2]] == loaded.caption(
        [folder / "3.png", folder / "4.png"], max_new_tokens=4
    )
    lines = "What is it?\n/regenerate\n/edit And now?\n/undo\n"
    chatted = run("chat", folder / "3.png", "--model", model, "--max-new-tokens", "4", input=lines)
    assert chatted.exit_code == 0, chatted.stderr
    session = loaded.chat(max_new_tokens=4)
    first = session.ask("What is it?", images=[folder / "3.png"])
    assert chatted.stdout == f"{first}\n{first}\n{session.edit(0, 'And now?')}\n"


def test_settings_out_of_range_are_one_line(model, folder):
    for option, value, name in [("--max-new-tokens", "-1", "max_new_tokens"), ("--temperature", "nan", "temperature")]:
        for command in ("caption", "chat"):
            result = run(command, folder / "3.png", "--model", model, f"{option}={value}", input="Hello\n")
            assert result.exit_code == 1
            assert result.stderr.splitlines()[-1].startswith(f"minichat: {name} is ")
            assert result.stdout == ""


def test_a_file_of_answers_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for name, why in (("nowhere", "No such file"), (".", "Is a directory"), ("latin", "no UTF-8")):
        result = run("evaluate", "questions", "--data", "q.jsonl", "--candidates", tmp_path / name)
        assert result.exit_code == 1
        assert "The answers" in result.stderr and why in result.stderr
