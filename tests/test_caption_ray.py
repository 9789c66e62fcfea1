"""Captions by workers on a Ray cluster are those of one process, whatever dies. `make test-ray` runs it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from minichat.toy.world import draw, random_scene

NODES = Path(__file__).parent / "clients" / "ray_nodes.py"
INSTALLED = os.environ.get("MINICHAT_RAY")
pytestmark = [
    pytest.mark.skipif(INSTALLED is None, reason="Ray is not installed: make test-ray"),
    pytest.mark.timeout(1800),
]
COUNT = int(os.environ.get("MINICHAT_RAY_PICTURES", "240"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes to caption, one of which is no picture, and their captions by one process."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "photos").mkdir()
    for number in range(COUNT):
        draw(random_scene(random.Random(number))).save(desk / "photos" / f"{number:05}.png")
    (desk / "photos" / "00007.png").write_bytes(b"no picture")
    program = command(desk, "local")
    assert program.wait() == 3
    return desk


def command(desk: Path, engine: str, address: str = "", out: str | None = None) -> subprocess.Popen[bytes]:
    """A run of `minichat caption`; 3 is its end where one picture is none."""
    asked = ["caption", "photos", "--out", f"{out or engine}.jsonl", "--engine", engine, "--device", "cpu"]
    limits = ["--dtype", "float32", "--max-new-tokens", "12", "--batch-size", "4"]
    surroundings = {**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([f"{INSTALLED}/bin/python", "-m", "minichat", *asked, *limits], cwd=desk, env=surroundings)


@pytest.fixture
def cluster() -> Iterator[tuple[str, psutil.Process]]:
    """The address of two nodes, and the process that all of theirs descend from."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([f"{INSTALLED}/bin/python", str(NODES)], text=True, **pipes) as program:
        lines = iter(program.stdout.readline, "")
        address = next(line.strip() for line in lines if line.strip().rpartition(":")[2].isdigit())
        yield address, psutil.Process(program.pid)
        program.stdin.close()


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def at_work(parent: psutil.Process) -> list[psutil.Process]:
    """Workers that are writing captions: Ray calls a process by what it does."""
    found = []
    for process in parent.children(recursive=True):
        try:
            if "_Worker.outcomes" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it is over
            continue
    return found


def test_each_picture_has_one_row_whatever_dies(desk: Path, cluster: tuple[str, psutil.Process]) -> None:
    address, parent = cluster
    program, killed = command(desk, "ray", address), 0
    while program.poll() is None:
        if killed < 2 and len(rows(desk / "ray.jsonl")) > COUNT * (killed + 1) // 4 and (found := at_work(parent)):
            found[0].kill()
            killed += 1
        time.sleep(0.2)
    assert killed == 2 and program.returncode == 3
    assert len(rows(desk / "ray.jsonl")) == COUNT
    assert rows(desk / "ray.jsonl") == rows(desk / "local.jsonl")
    assert command(desk, "ray", address).wait() == 3  # goes on, with nothing to do
    assert rows(desk / "ray.jsonl") == rows(desk / "local.jsonl")


def test_a_cluster_is_started_here_where_none_is_named_and_ends(desk: Path) -> None:
    program = command(desk, "ray", out="here")
    parent, started = psutil.Process(program.pid), list[psutil.Process]()
    while program.poll() is None:
        started = at_work(parent) or started
        time.sleep(0.2)
    assert program.returncode == 3 and rows(desk / "here.jsonl") == rows(desk / "local.jsonl")
    assert started and not psutil.wait_procs(started, timeout=60)[1]
