"""Standard input, output and error that are closed, full, in a narrow encoding, or hold bytes that are no text."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minichat.cli.options import InputError, Lines
from minichat.errors import PromptError
from tests.test_cli import FAKE, ROOT

# Commands are run in forks of one process, in which what takes long is replaced. Each argument is a redirection of the
# shell's, a tab, and the arguments of `minichat` as JSON; a line of stdout tells what came of each.
FORKS = (
    FAKE.replace("cli.main()\n", "")
    + """
import json, minichat.captioning.journal, minichat.data.check, minichat.cli.terminal
from pathlib import Path
from types import SimpleNamespace as Fake

hit = Fake(path=Path("\\u4e2d.png"), score=0.5, similarity=0.5, matching=0.5)
index = Fake(skipped=[], find=lambda query, **options: [hit] * 50)
report = Fake(as_dict=lambda: {"memory": 1}, to_markdown=lambda: "| caf\\u00e9 \\u4e2d |\\n" * 50, blind=[])
sys.modules |= {
    "minichat.search": Fake(Index=Fake(open=lambda *a, **k: index), contact_sheet=None),
    "minichat.evaluate.run": Fake(CHAT_TASKS=(), Plan=lambda *a, **k: None),
    "minichat.inference.doctor": Fake(examine=lambda *a, **k: report),
}
sys.modules["minichat.cli.train"]._measure = lambda *a: report
from minichat.weights import registry
registry.catalogue, registry.hint = lambda: ["a model"] * 50, lambda: "a hint"

def closed(number, name):
    os.close(number)
    setattr(sys, name, None)  # as Python finds it

def full(number):
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)

def broken(number):
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, number)

REDIRECTIONS = {
    "<&-": lambda: closed(0, "stdin"), ">&-": lambda: closed(1, "stdout"), "2>&-": lambda: closed(2, "stderr"),
    ">/dev/full": lambda: full(1), "2>/dev/full": lambda: full(2), "| head -0": lambda: broken(1),
    "<FOLDER": lambda: os.dup2(os.open("/", os.O_RDONLY), 0),
}
told = os.dup(1)
for case in sys.argv[1:]:
    redirection, _, arguments = case.partition("\\t")
    errors = f"{os.environ['TMPDIR']}/errors"
    pid = os.fork()
    if not pid:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        REDIRECTIONS[redirection]()
        sys.argv = ["minichat", *json.loads(arguments)]
        cli.main()
        sys.exit("never reached")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(told, (json.dumps([redirection, code, open(errors).read()]) + "\\n").encode())
"""
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    question = {"role": "user", "content": [{"type": "image", "image": "猫.png"}, {"type": "text", "text": "什么？"}]}
    record = {"messages": [question, {"role": "assistant", "content": "é"}]}
    (folder / "zh.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


FULL = [
    ["--help"], ["models"], ["doctor", "--json"], ["data", "check", "zh.jsonl"], ["caption", "a.png"],
    ["search", "words", "."], ["evaluate", "questions"],
]  # fmt: skip
CLOSED = [["--help"], ["caption", "a.png"], ["models"]]
LEFT = [["--version"], ["caption", "a.png"], ["search", "--json", "words", "."]]
UNTOLD = [(["caption", "a.png"], 0), (["caption", "absent"], 3), (["convert"], 2)]  # and the exit code
READING = [["chat"], ["search", "-", "."]]


@pytest.fixture(scope="module")
def outcomes(files: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """By redirection and command: the exit code, and what went to standard error."""
    if not hasattr(os, "fork") or not os.path.exists("/dev/full"):
        pytest.skip("this system has no fork or no full device")
    cases = [(">/dev/full", each) for each in FULL]
    cases += [(">&-", each) for each in CLOSED] + [("| head -0", each) for each in LEFT]
    cases += [(to, each) for each, _ in UNTOLD for to in ("2>&-", "2>/dev/full")]
    cases += [(source, each) for each in READING for source in ("<&-", "<FOLDER")] + [("<&-", ["--version"])]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *(f"{to}\t{json.dumps(command)}" for to, command in cases)],
        cwd=files, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(files), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(cases), done.stderr
    return {(to, " ".join(command)): (row[1], row[2]) for (to, command), row in zip(cases, found, strict=True)}


@pytest.mark.parametrize(
    ("to", "command"),
    [(">/dev/full", " ".join(each)) for each in FULL] + [(">&-", " ".join(each)) for each in CLOSED],
)
def test_output_that_cannot_be_written_is_a_sentence_and_1(outcomes: Any, to: str, command: str) -> None:
    code, errors = outcomes[to, command]
    [sentence] = [line for line in errors.splitlines() if "cannot be written" in line]
    assert sentence.startswith("minichat: ")
    assert {">&-": "(it is closed)", ">/dev/full": "(No space left on device)"}[to] in sentence
    assert code == 1
    assert "Traceback" not in errors and "Exception ignored" not in errors


@pytest.mark.parametrize("command", [" ".join(each) for each in LEFT])
def test_a_reader_that_has_left_is_silence_and_1(outcomes: Any, command: str) -> None:
    code, errors = outcomes["| head -0", command]
    assert code == 1
    assert errors.removeprefix("The model is minichat-tiny.\n") in ("", "captioning\n")


@pytest.mark.parametrize(("command", "wanted"), [(" ".join(each), code) for each, code in UNTOLD])
def test_notes_that_cannot_be_written_change_nothing(outcomes: Any, command: str, wanted: int) -> None:
    assert [outcomes[to, command][0] for to in ("2>&-", "2>/dev/full")] == [wanted, wanted]


def test_input_that_cannot_be_read_is_a_sentence_and_1(outcomes: Any) -> None:
    for command in ("chat", "search - ."):
        for source, why in (("<&-", "it is closed"), ("<FOLDER", "Is a directory")):
            code, errors = outcomes[source, command]
            assert code == 1
            assert errors.splitlines()[-1].startswith(f"minichat: Standard input cannot be read ({why})")
    assert outcomes["<&-", "--version"] == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16", "utf-8:strict"])
def test_every_text_is_written_in_any_encoding(files: Path, encoding: str) -> None:
    code = (
        "import sys\nfrom minichat.cli import options\noptions.prepare()\nimport typer\n"
        "for text in ('caf\\u00e9 \\u4e2d \\U0001f600', 'half \\ud800'):\n"
        "    typer.echo(text)\n    print(text)\n    typer.echo(text, err=True)\n"
        "    typer.echo(text.encode('utf-8', 'replace'))\n"
        "sys.stdout.flush()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert "café 中 😀\n".encode() in done.stdout  # bytes are what they are: data, in UTF-8


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_report_is_readable_in_a_narrow_encoding(files: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minichat", "data", "check", "zh.jsonl"],
        cwd=files, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"zh.jsonl:1: " in done.stdout
    assert b"\\u732b.png" in done.stdout or "猫.png".encode() in done.stdout  # ASCII alone is taken for a mistake


# --- lines in


def lines_of(data: bytes, encoding: str = "utf-8") -> list[str]:
    """The lines, with the first words of the error in place of one that cannot be read."""
    read, found = Lines(io.TextIOWrapper(io.BytesIO(data), encoding=encoding)), []
    while True:
        try:
            found.append(read("> "))
        except EOFError:
            assert read.number == len(found)
            return found
        except PromptError as error:
            found.append(str(error)[:15])


BAD, NUL = "Not all of thes", "A null characte"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb", ["a", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b"\xef\xbb\xbf/image a.png\n\xef\xbb\xbfb\n", ["/image a.png", "b"]),
        (b"caf\xe9\nb\n", [BAD, "b"]),
        (b"a\n\xff\xfe\nb\n", ["a", BAD, "b"]),
        (b"half \xed\xa0\x80\nb\n", [BAD, "b"]),
        (b"a\0b\nb\n", [NUL, "b"]),
        ("é 中\nb\n".encode("utf-16"), ["é 中", "b", ""]),
        (b"\xfe\xff" + "é 中\r\nb".encode("utf-16-be"), ["é 中", "b"]),
        (b"\xff\xfe" + "a\n".encode("utf-16-le") + b"\x00\xd8" + "\nb".encode("utf-16-le"), ["a", BAD, "b"]),
        ("a\nb".encode("utf-16") + b"c", ["a", BAD]),
        ("a\nb".encode("utf-16-le"), [NUL, NUL]),
    ],
)
def test_a_line_that_is_no_text_costs_itself_alone(data: bytes, lines: list[str]) -> None:
    assert lines_of(data) == lines


def test_the_systems_encoding_is_read_where_a_line_is_not_utf8() -> None:
    assert lines_of("é".encode() + b"\ncaf\xe9\nb\x81", "cp1252") == ["é", "café", BAD]
    assert lines_of("日本".encode("cp932"), "cp932") == ["日本"]


def test_a_stream_that_fails_is_told_once() -> None:
    class Failing(io.BytesIO):
        def readline(self, size: Any = -1) -> bytes:
            raise OSError(5, "Input/output error")

    closed = io.TextIOWrapper(io.BytesIO(b"a"), encoding="utf-8")
    closed.buffer.close()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: io.TextIOWrapper(Failing()), "Input/output error"),
        (lambda: closed, "it is closed"),
    ]
    for make, why in cases:
        with pytest.raises(InputError, match=why):
            Lines(make())()
