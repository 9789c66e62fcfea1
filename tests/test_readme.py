"""Every command and program of the README runs as it stands there."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import minichat
from minichat.toy.world import NUMBERS, draw, random_scene
from tests import processes
from tests.published_files import publish

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line.split(" #")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("minichat ")]
COPIES = next(line for line in LINES if line.startswith("cp "))


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the pictures that the README speaks of."""
    (tmp_path / "pictures").mkdir()
    for seed, name in enumerate(("scene.png", "other.png", "pictures/first.png", "pictures/second.jpg")):
        draw(random_scene(random.Random(seed)), 200, seed).save(tmp_path / name)
    return tmp_path


PUBLISHED = {
    "eva_vit.pth": "eva_vit_g.pth",
    "blip2.pth": "blip2_pretrained_flant5xxl.pth",
    "minigpt4.pth": "prerained_minigpt4_7b.pth",
    "llm": "vicuna-7b",
}
SMALL = " --vision-heads 2 --qformer-heads 2"  # the stand-ins have fewer heads than what is published


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_readme_has_the_commands_that_are_tested_here() -> None:
    assert {command.split()[1] for command in COMMANDS} == {
        "chat",
        "caption",
        "data",
        "demo",
        "convert",
        "doctor",
        "models",
        "export",
        "train",
        "evaluate",
        "search",
        "teach",
    }
    assert set(LINES) - set(COMMANDS) == {
        "make demo",
        "make test",
        "pip install -r requirements.txt -c constraints.txt && pip install --no-deps -e .",
        "python demo.py",
        COPIES,
    }


def test_its_own_commands_draw_the_pictures_that_it_speaks_of(tmp_path: Path) -> None:
    drawing = LINES[LINES.index(COPIES) - 1]
    assert processes.minichat(shlex.split(drawing)[1:], tmp_path).returncode == 0
    subprocess.run(COPIES, shell=True, cwd=tmp_path, check=True)
    for name in ("scene.png", "other.png"):
        assert name in README and (tmp_path / name).is_file()
    assert "pictures/" in README and len(list((tmp_path / "pictures").iterdir())) == 20


IN_TURN = [c for c in COMMANDS if "minigpt4-7b" in c], [c for c in COMMANDS if "runs/" in c or c.split()[1] == "train"]
# The page has a test of its own here, and what takes minutes has one in `test_teach.py`.
ALONE = [c for c in COMMANDS if c.split()[1] not in ("demo", "teach") and not any(c in some for some in IN_TURN)]
# What would take minutes does less of the same.
LESS = {"--count 500": "--count 20", "--count 50 ": "--count 2 "}
FEW_STEPS = " run.epochs=1 report.samples=1 report.max_new_tokens=12"


@pytest.mark.parametrize("command", ALONE)
def test_a_command_runs(command: str, desk: Path) -> None:
    check(command, desk)


@pytest.mark.parametrize("commands", IN_TURN, ids=["published weights", "fine-tuning"])
def test_commands_run_in_turn(commands: list[str], desk: Path) -> None:
    publish(desk)
    for name, published in PUBLISHED.items():
        (desk / name).rename(desk / published)
    (desk / "train_configs").symlink_to(ROOT / "train_configs")
    for command in commands:
        check(command, desk)


def check(command: str, desk: Path) -> None:
    for much, little in LESS.items():
        command = command.replace(much, little)
    command += SMALL if command.split()[1] == "convert" else FEW_STEPS if command.split()[1] == "train" else ""
    program = processes.minichat(shlex.split(command)[1:], desk, typed="What is this?\n")
    assert program.returncode == 0, program.stderr
    if "--out" in command:
        assert (desk / command.split("--out ")[1].split()[0]).exists()
    elif command.split()[1] != "train":
        assert program.stdout.strip()


@pytest.mark.parametrize(
    "command", [[sys.executable, str(ROOT / "demo.py")], [sys.executable, "-m", "minichat", "demo"]]
)
def test_the_page_comes_up_and_ends_on_ctrl_c(command: list[str], desk: Path) -> None:
    program = start([*command, "--port", str(free_port())], desk)
    try:
        line = next(line for line in iter(program.stderr.readline, "") if "MiniChat is at" in line)  # type: ignore[union-attr]
        assert "http://127.0.0.1:" in line
    finally:
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=60)
    assert program.returncode == 130


def example() -> str:
    (text,) = (text for kind, text in BLOCKS if kind == "python")
    return text


def test_the_python_example_runs(desk: Path) -> None:
    program = start([sys.executable, "-c", example()], desk)
    out, err = program.communicate(timeout=200)
    assert program.returncode == 0, err
    assert len(out.splitlines()) >= 2


def test_the_python_example_is_answered_rightly(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 20 scenes: the number of things, and the ground's colours, are those of the scene; 19 right are asked for."""
    assert '"How many objects are there?"' in example()
    assert '"What colour is the background?"' in example()
    bot = minichat.load("minichat-tiny")
    monkeypatch.setattr(minichat, "load", lambda name: bot)
    monkeypatch.setattr(bot, "caption", lambda pictures: [])  # which the test before this one runs
    monkeypatch.chdir(desk)
    wrong = []
    for seed in range(20):
        scene = random_scene(random.Random(f"README {seed}"))
        draw(scene, 200, seed).save("scene.png")
        exec(compile(example(), "README.md", "exec"), {})
        counted, rest = capsys.readouterr().out.lower().split("\n", 1)
        ground = rest.split("[", maxsplit=1)[0]  # the captions stand behind it
        right = [NUMBERS[len(scene.things)] in counted, *(colour in ground for colour in scene.background.colours)]
        if not all(right):
            wrong.append((counted, ground))
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)", README))))
def test_a_make_target_exists(target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else f"docs/{page.name}")
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == {p.name for p in ROOT.glob("docs/*.md")} - {"README.md"}


def test_the_tables_of_rooms_name_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms, beside = (text.split(f"| {head} | what is in it |\n|---|---|\n")[1] for head in ("room", "folder"))
    for home, table in ((ROOT / "minichat", rooms), (ROOT, beside)):
        for row in table.split("\n\n")[0].splitlines():
            for name in re.findall(r"`([^`]+)`", row.split("|")[1]):
                assert (home / name).exists() or (home / f"{name}.py").is_file(), name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150
