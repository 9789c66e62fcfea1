"""What `check` finds, what `preview` shows, and what the command line makes of them."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from minichat import cli
from minichat.data.check import Report, check, plot, sample, to_html, to_terminal
from minichat.data.example import Problem
from minichat.data.formats import examples
from minichat.inference.load import load_processor
from minichat.prompt.processor import MiniChatProcessor

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def processor() -> MiniChatProcessor:
    return load_processor("minichat-tiny")[0]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        Image.new("RGB", (5, 5), (number, 0, 0)).save(tmp_path / f"{name}.png")
    Image.new("RGB", (5, 5), (0, 0, 0)).save(tmp_path / "a again.png")  # the same bytes as a.png
    return tmp_path


def turn(role: str, text: str, *pictures: str) -> dict[str, Any]:
    shown = [{"type": "image", "image": name} for name in pictures]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def write(home: Path, *records: Any) -> str:
    lines = (json.dumps({"messages": one}) if isinstance(one, list) else one for one in records)
    (home / "train.jsonl").write_text("".join(line + "\n" for line in lines))
    return "train.jsonl"


def found(source: str, **options: Any) -> tuple[Report, list[str]]:
    problems: list[Problem] = []
    report = check(source, found=problems.append, **options)
    return report, [str(problem) for problem in problems]


def talk(picture: str, text: str = "What?", answer: str = "A field.") -> list[Any]:
    return [turn("user", text, picture), turn("assistant", answer)]


def test_what_is_wrong_is_all_reported_with_its_line(home: Path, processor: MiniChatProcessor) -> None:
    (home / "broken.png").write_text("hello")
    source = write(
        home,
        talk("a.png"),
        talk("absent.png"),
        talk("a again.png"),
        [turn("user", "What?", "broken.png", "absent.png"), turn("assistant", "x")],
        talk("b.png", answer=" "),
        [turn("system", " "), *talk("b.png")],
        talk("c.png", answer="red " * 300),
        "{",
        talk("b.png"),
    )
    report, problems = found(source, processor=processor, context=200)
    assert [re.sub(r"\d{3,}", "N", problem) for problem in problems] == [
        "train.jsonl:2: the picture 'absent.png' is missing: put it there, or correct its path.",
        "train.jsonl:3: the record says the same as train.jsonl:1: remove one of them.",
        "train.jsonl:4: the picture 'broken.png' cannot be used: it is not a picture that can be opened: save it as "
        "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC (the content counts, not the ending).",
        "train.jsonl:4: the picture 'absent.png' is missing: put it there, or correct its path.",
        "train.jsonl:5: turn 2, a reply, is empty: write what is to be learned, or remove the record.",
        "train.jsonl:6: turn 1, the system text, is empty: write one, or leave the turn out.",
        "train.jsonl:7: the record has N tokens, and the model reads N: shorten it, or divide it.",
        "train.jsonl:8: this is not valid JSON (Expecting property name enclosed in double quotes, column 2): mend it, "
        "or write it again.",
    ]
    assert (report.records, report.wrong) == (9, 6)  # what is there twice is no fault
    assert (report.pictures, report.different_pictures) == (8, 3)


def test_the_lengths_are_those_that_training_sees(home: Path, processor: MiniChatProcessor) -> None:
    source = write(
        home, talk("a.png"), [*talk("b.png"), turn("user", "And?", "c.png", "a.png"), turn("assistant", "No.")]
    )
    report, problems = found(source, processor=processor, context=1024)
    assert problems == []
    rendered = [processor.render(example.conversation()) for example in examples(source)]
    assert report.lengths == {
        "replies in a record": [1, 2],
        "pictures in a record": [1, 3],
        "tokens in a reply": [len(processor.content_tokenizer.encode(r)) for r in ("A field.", "A field.", "No.")],
        "tokens in a record": [len(one.ids) for one in rendered],
    }
    without, _ = found(source)
    assert without.lengths["words in a reply"] == [2, 2, 1]
    assert "Records: 2. Good: 2. Wrong: 0.\nPictures: 4. Different ones: 3." in report.summary()


def test_what_is_odd_is_noted(home: Path, processor: MiniChatProcessor) -> None:
    source = write(
        home,
        [turn("system", "Be brief."), *talk("a.png", answer="It says [INST] there.")],
        [turn("user", "Hello?"), turn("assistant", "Hello.")],
    )
    report, problems = found(source, processor=processor)
    assert problems == []
    assert report.notes == [
        "Records without a picture: 1.",
        "Records with a system text: 1; the others are spelled with the template's.",
        "Replies that spell a marker of the template: 1; it gets a hyphen in it.",
    ]


def test_each_picture_is_opened_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minichat import images

    opened = []
    monkeypatch.setattr(images, "load", lambda data, load=images.load: opened.append(data) or load(data))
    source = write(home, *(talk(f"{name}.png", text=f"{number}?") for number in range(5) for name in "abc"))
    report, problems = found(source)
    assert (problems, len(opened), report.pictures) == ([], 3, 15)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1, 1, 2], ["x: 1 to 2, half of them up to 1", "  1  " + "█" * 40 + " 2", f"  2  {'█' * 20:<40} 1"]),
        ([7], ["x: 7 to 7, half of them up to 7", "  7  " + "█" * 40 + " 1"]),
        ([0, 3], ["x: 0 to 3, half of them up to 3", "  0  " + "█" * 40 + " 1", f"  1  {'':<40} 0",
                  f"  2  {'':<40} 0", "  3  " + "█" * 40 + " 1"]),
        ([], []),
    ],
)  # fmt: skip
def test_a_plot_of_lengths(lengths: list[int], expected: list[str]) -> None:
    assert plot("x", lengths) == expected


def test_a_plot_is_small_whatever_the_lengths() -> None:
    for most in (9, 10, 99, 1234, 10**6, 10**9):
        lines = plot("x", [*range(0, most, max(1, most // 50)), most])
        assert 3 <= len(lines) <= 10
        assert sum(int(line.split()[-1].replace(",", "")) for line in lines[1:]) == len(
            [*range(0, most, max(1, most // 50)), most]
        )
        assert max(map(len, lines)) < 100


# --- preview


@pytest.mark.parametrize("template", ["vicuna-v0", "vicuna-v1.1", "llama2", "minigpt-v2", "plain", "vicuna-v0-train"])
def test_what_is_marked_is_what_is_learnt(template: str, processor: MiniChatProcessor) -> None:
    """The marked words are the replies and their end, and everything together is the prompt."""
    processor = with_template(processor, template)
    decode = processor.content_tokenizer.decode
    for example in [*examples(DATA / "talk_messages.jsonl"), *examples(DATA / "messages.jsonl")]:
        shown = sample(example, processor)
        rendered = processor.render(example.conversation())
        assert (shown.tokens, shown.supervised) == (len(rendered.ids), sum(rendered.loss_mask))
        marked = "".join(piece.text.strip() for piece in shown.pieces if piece.supervised)
        end = {"vicuna-v0": "###", "vicuna-v0-train": "###", "plain": ""}.get(template, "</s>")
        assert marked == "".join(reply + end for reply in example.replies)
        assert [piece.picture for piece in shown.pieces if piece.picture is not None] == list(
            range(len(example.pictures))
        )
        words = "".join(piece.text for piece in shown.pieces if piece.picture is None and not piece.control)
        plain = [i for i in rendered.ids if i != processor.image_token_id]
        assert "".join(words.split()) == "".join(decode(plain).split())


def with_template(processor: MiniChatProcessor, template: str) -> MiniChatProcessor:
    made = MiniChatProcessor(
        processor.image_processor,
        processor.tokenizer,
        template=template,
        num_image_tokens=processor.num_image_tokens,
        image_token_id=processor.image_token_id,
    )
    made._content = processor.content_tokenizer
    return made


HOSTILE = "\x1b[2J\x1b]0;x\x07<script>alert(1)</script> & \u202e\u0000"


def test_a_terminal_cannot_be_steered(home: Path, processor: MiniChatProcessor) -> None:
    source = write(home, talk("a.png", text=HOSTILE[:-1], answer=HOSTILE[:-1]))
    (example,) = examples(source)
    for colour in (False, True):
        (text,) = to_terminal([sample(example, processor)], colour)
        bare = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert ("\x1b" in text) is colour
        assert all(c.isprintable() or c == "\n" for c in bare)
        assert "\\x1b[2J" in bare
        assert "<script>alert(1)</script> & \\x202e" in bare
    assert text.count("\x1b[1;32m") == 2  # the reply, and its end
    (text,) = to_terminal([sample(example, processor)], False)
    assert re.search(r"⟦ *\\x1b\[2J.*⟧⟦</s>⟧", text)


def test_the_page_holds_what_it_shows_and_runs_nothing(home: Path, processor: MiniChatProcessor) -> None:
    source = write(home, talk("a.png", text=HOSTILE[:-1], answer="Fine."), talk("<b>.png"))
    page = to_html([sample(example, processor) for example in examples(source)])
    assert "<script" not in page
    assert html.escape("<script>alert(1)</script> & \\x202e") in page
    assert "default-src 'none'" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;b&gt;.png&#x27; is missing" in page
    assert re.search(r'<span class="supervised"> ?Fine\.</span><span class="supervised">&lt;/s&gt;</span>', page)


# --- the command line


def run(*arguments: Any, **options: Any) -> Any:
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)], **options)


def test_check_on_the_command_line(home: Path) -> None:
    source = write(home, talk("a.png"), talk("b.png"))
    good = run("check", source, "--model", "minichat-tiny")
    assert good.exit_code == 0, good.stderr
    assert good.stdout.startswith("Records: 2. Good: 2. Wrong: 0.\n")
    assert "tokens in a record" in good.stdout
    some = run("check", write(home, talk("a.png"), talk("absent.png")))
    assert some.exit_code == 3
    assert some.stdout.startswith("train.jsonl:2: the picture 'absent.png' is missing")
    assert "Records: 2. Good: 1. Wrong: 1." in some.stdout
    assert some.stderr == ""
    none = run("check", write(home, talk("absent.png")))
    assert none.exit_code == 1
    (home / "train.jsonl").write_text("")
    empty = run("check", "train.jsonl")
    assert (empty.exit_code, empty.stdout) == (1, "")
    assert empty.stderr == "minichat: train.jsonl:1: the file is empty: there is no record in it.\n"
    assert run("check", "absent.jsonl").exit_code == 1
    assert run("check", "x.jsonl", "--form", "coco").exit_code == 1
    assert run("check", source, "--model", "absent").exit_code == 1


def test_a_thousand_mistakes_of_one_kind_are_counted(home: Path) -> None:
    source = write(home, *(talk(f"no {number}.png", text=f"{number}?") for number in range(1000)), "{", talk("a.png"))
    short = run("check", source)
    assert short.exit_code == 3
    lines = short.stdout.splitlines()
    assert lines[19] == "train.jsonl:20: the picture 'no 19.png' is missing: put it there, or correct its path."
    assert lines[20].startswith("train.jsonl:1001: this is not valid JSON")
    assert lines[21:23] == [
        "... and 980 more of these kinds (--all shows them).",
        "Records: 1,002. Good: 1. Wrong: 1,001.",
    ]
    everything = run("check", source, "--all")
    assert everything.stdout.count("is missing") == 1000
    assert "more of these" not in everything.stdout


def test_a_folder_that_holds_a_data_set_says_so(home: Path) -> None:
    (home / "set").mkdir()
    (home / "set" / "conversations.jsonl").write_text("")
    result = run("check", "set")
    assert result.exit_code == 1
    assert "It holds 'conversations.jsonl': name one of them." in result.stderr


def test_drawn_scenes_are_read_as_they_were_written(home: Path) -> None:
    assert run("scenes", "--count", "4", "--out", "scenes", "--size", "32").exit_code == 0
    replies = ["--text-column", "reply"]
    files = {"conversations.jsonl": [], "captions.csv": [], "descriptions.csv": [], "questions.jsonl": replies}
    for name, options in files.items():
        result = run("check", f"scenes/{name}", *options)
        assert result.exit_code == 0, result.stdout
    two = run("check", "scenes/questions.jsonl")
    assert two.exit_code == 1
    assert "'answer' and 'reply' could each be the text: name one (text_column; on the command line" in two.stdout


def test_the_options_reach_the_reader(home: Path) -> None:
    (home / "elsewhere").mkdir()
    (home / "a.png").rename(home / "elsewhere" / "a.png")
    (home / "ask.txt").write_text("Say it.\n")
    (home / "x.csv").write_text("p,q,t\na.png,Why?,So.\n")
    columns = ["--form", "pairs", "--image-column", "p", "--text-column", "t", "--images", "elsewhere"]
    asked = run("preview", "x.csv", *columns, "--instructions", "ask.txt", "--no-colour", "--unknown-keys", "ignore")
    assert "Say it." in asked.stdout, asked.stderr
    asked = run("preview", "x.csv", *columns, "--question-column", "q", "--no-colour")
    assert "Why?" in asked.stdout
    assert run("check", "x.csv", *columns).exit_code == 1  # nothing reads q
    assert run("check", "x.csv", *columns, "--unknown-keys", "ignore").exit_code == 0


def test_preview_on_the_command_line(home: Path) -> None:
    source = write(home, *(talk("a.png", text=f"What is {number}?") for number in range(7)))
    shown = run("preview", source)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.count("── train.jsonl:") == 5
    assert "\x1b" not in shown.stdout
    assert "\x1b[1;32m" in run("preview", source, "--count", "1", "--colour").stdout
    paged = run("preview", source, "--count", "2", "--html", "page.html")
    assert (paged.exit_code, paged.stdout) == (0, "")
    assert (home / "page.html").read_text().count("<section>") == 2
    again = run("preview", source, "--html", "page.html")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    broken = run("preview", write(home, talk("a.png"), "{"), "--html", "other.html", "--model", "minichat-tiny")
    assert broken.exit_code == 1
    assert broken.stderr.startswith("minichat: train.jsonl:2: ")
    assert sorted(path.name for path in home.glob("*.html")) == ["page.html"]
    assert run("preview", source, "--count", "0").exit_code == 2


@pytest.mark.parametrize("command", ["check", "preview", "convert", "split", "scenes"])
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Usage: .*data {command}", result.stdout)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['minichat', 'data', 'check', '--help']\n"
        "from minichat import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'transformers', 'datasets', 'PIL', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_reading_and_checking_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from minichat.data.check import check\n"
        f"report = check({str(DATA / 'messages.jsonl')!r}, found=print)\n"
        "print(report.records, [n for n in ('torch', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "3 []\n", done.stderr
