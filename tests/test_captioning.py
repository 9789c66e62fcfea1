"""`minichat.captioning`: a run that is stopped goes on by the same command; nothing is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.captioning.captioner import Captioner, Facts, Job
from minichat.errors import SettingsError
from minichat.images import to_pixels
from tests.captioning import Bot, paint, rows, run
from tests.tiny import noise_picture, tiny_bot

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bot(monkeypatch):
    fake = Bot()
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *arguments: fake)
    return fake


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Five pictures and a file that is none, seen from the folder above."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for red in range(1, 6):
        paint(folder / f"{red}.png", red)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return folder


WHOLE = {f"photos/{red}.png": f"It is red {red}." for red in range(1, 6)} | {"photos/bad.png": "failed"}


# --- going on


def test_the_same_command_does_what_is_left(bot, photos):
    bot.fails_at = 2
    stopped = CliRunner().invoke(cli.app, ["caption", "photos", "--out", "c.jsonl", "--batch-size", "1"])
    assert stopped.exit_code == 130 or isinstance(stopped.exception, KeyboardInterrupt | SystemExit)
    assert "2 of 6 pictures have their rows in 'c.jsonl', which is kept" in stopped.stderr
    assert "The same command goes on." in stopped.stderr
    assert list(rows()) == ["photos/1.png", "photos/2.png"]
    bot.fails_at = None
    again = run("photos", "--out", "c.jsonl", "--batch-size", "1", code=3)
    assert rows() == WHOLE and list(rows()) == list(WHOLE)
    assert bot.count == 5
    assert "6 pictures: 3 captioned, 1 failed, 2 done before." in again.stderr
    before = Path("c.jsonl").read_bytes()
    once_more = run("photos", "--out", "c.jsonl", code=3)  # one has failed, still
    assert bot.count == 5 and Path("c.jsonl").read_bytes() == before
    assert "6 pictures: 0 captioned, 0 failed, 6 done before." in once_more.stderr


def test_rows_of_a_run_without_a_record_are_gone_on_with(bot, photos):
    lines = [json.dumps({"image": f"photos/{red}.png", "caption": "Mine."}) + "\n" for red in (1, 4)]
    Path("c.jsonl").write_text("".join(lines) + '{"image": "photos/2.png", "capt')  # torn
    done = run("photos", "--out", "c.jsonl", code=3)
    assert rows() == WHOLE | {"photos/1.png": "Mine.", "photos/4.png": "Mine."}
    assert bot.count == 3
    assert "Rows of 'c.jsonl' that came with no record of model and prompt, and are kept: 2." in done.stderr


@pytest.mark.parametrize(
    "content",
    ["hello\n", "[1]\n", '{"image": "a.png"}\n', '{"image": "a.png", "caption": "x", "score": 3}\n', "{\n{}\n",
     '{"image": 3, "caption": "x"}\n'],
)  # fmt: skip
def test_a_file_of_something_else_is_left_alone(bot, photos, content):
    Path("c.jsonl").write_text(content)
    refused = run("photos", "--out", "c.jsonl", code=1)
    assert "c.jsonl:1 is no row of `minichat caption`" in refused.stderr and "name another --out" in refused.stderr
    assert Path("c.jsonl").read_text() == content
    assert bot.count == 0
    assert not Path(".c.jsonl.run").exists()


def test_files_that_were_added_changed_renamed_copied_or_removed(bot, photos):
    run("photos", "--out", "c.jsonl", code=3)
    done = bot.count
    paint(photos / "6.png", 6)  # added
    paint(photos / "2.png", 22)  # changed
    (photos / "3.png").rename(photos / "three.png")
    (photos / "copy.png").write_bytes((photos / "4.png").read_bytes())
    (photos / "5.png").unlink()
    os.utime(photos / "1.png", (1, 1))  # the same content at another time
    again = run("photos", "--out", "c.jsonl", code=3)
    assert rows() == {
        "photos/1.png": "It is red 1.",
        "photos/2.png": "It is red 22.",
        "photos/4.png": "It is red 4.",
        "photos/bad.png": "failed",
        "photos/6.png": "It is red 6.",
        "photos/copy.png": "It is red 4.",
        "photos/three.png": "It is red 3.",
    }
    assert bot.count == done + 2  # what has the content of another has its caption
    assert "Rows taken out, whose pictures are not there any more: 2." in again.stderr
    paint(photos / "5.png", 5)  # it comes back
    run("photos", "--out", "c.jsonl", code=3)
    assert rows()["photos/5.png"] == "It is red 5." and bot.count == done + 2


def test_other_sources_are_added(bot, photos, tmp_path):
    (tmp_path / "more").mkdir()
    paint(tmp_path / "more" / "9.png", 9)
    run("photos/1.png", "--out", "c.jsonl")
    run("more", "--out", "c.jsonl")
    assert rows() == {"photos/1.png": "It is red 1.", "more/9.png": "It is red 9."}


def test_a_named_file_that_is_gone_keeps_its_caption(bot, photos):
    run("photos/1.png", "photos/2.png", "--out", "c.jsonl")
    (photos / "2.png").unlink()
    run("photos/1.png", "photos/2.png", "--out", "c.jsonl")
    assert rows()["photos/2.png"] == "It is red 2."


def test_below_a_folder_that_is_away_rows_stay(bot, photos):
    """It may be a disk that is not there just now."""
    paint(photos / "disk" / "7.png", 7)
    run("photos", "--out", "c.jsonl", code=3)
    (photos / "disk").rename(photos.parent / "away")
    again = run("photos", "--out", "c.jsonl", code=3)
    assert rows() == WHOLE | {"photos/disk/7.png": "It is red 7."}
    assert "taken out" not in again.stderr


def test_where_a_folder_cannot_be_read_rows_stay(bot, photos, monkeypatch):
    """What is there is not known, and so not what is gone."""
    paint(photos / "closed" / "7.png", 7)
    run("photos", "--out", "c.jsonl", code=3)
    (photos / "5.png").unlink()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        assert "closed" in run("photos", "--out", "c.jsonl", code=3).stderr
    assert rows() == WHOLE | {"photos/closed/7.png": "It is red 7."}


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (["--prompt", "What?"], ["--prompt", "Who?"], "the prompt 'What?', and now it is 'Who?'"),
        ([], ["--prompt", "Who?"], "the prompt of the model, and now it is 'Who?'"),
        (["--prompt", "What?"], [], "the prompt 'What?', and now it is of the model"),
        (["--max-new-tokens", "9"], [], "max_new_tokens 9, and now it is not given"),
        ([], ["--temperature", "1"], "temperature not given, and now it is 1.0"),
        ([], ["--absolute"], "absolute paths False, and now it is True"),
    ],
)
def test_what_was_begun_otherwise_is_refused(bot, photos, first, then, said):
    run("photos", "--out", "c.jsonl", *first, code=3)
    before, done = Path("c.jsonl").read_bytes(), bot.count
    refused = run("photos", "--out", "c.jsonl", *then, code=1)
    assert f"'c.jsonl' was begun with {said}" in refused.stderr
    assert "give the same again, or name another --out" in refused.stderr
    assert Path("c.jsonl").read_bytes() == before and bot.count == done
    run("photos", "--out", "c.jsonl", *first, code=3)


def test_other_weights_are_refused_and_auto_is_what_it_was(bot, photos, monkeypatch):
    from minichat.weights import registry

    weights = {"minichat-tiny": ("a", "float32"), "new": ("b", "float32"), "half": ("a", "bfloat16")}
    loaded = []

    def load(name, *arguments):
        loaded.append(name)
        return bot

    monkeypatch.setattr("minichat.cli.chat.load_bot", load)
    monkeypatch.setattr(Facts, "of", lambda bot: Facts(*weights[loaded[-1]]))
    run("photos/1.png", "--out", "c.jsonl")
    monkeypatch.setattr(registry, "default_model", lambda: "new")  # another day
    went_on = run("photos", "--out", "c.jsonl", code=3)
    assert loaded == ["minichat-tiny", "minichat-tiny"]
    assert "The model is minichat-tiny, with which this run began." in went_on.stderr
    paint(photos / "7.png", 7)
    refused = run("photos", "--out", "c.jsonl", "--model", "new", code=1)
    assert "other weights, 'minichat-tiny', and now it is 'new': give --model minichat-tiny" in refused.stderr
    refused = run("photos", "--out", "c.jsonl", "--model", "half", code=1)
    assert "begun in float32" in refused.stderr and "--dtype float32" in refused.stderr
    assert "photos/7.png" not in rows()


def test_a_prompt_or_default_of_another_version_is_gone_on_with(bot, photos, monkeypatch):
    run("photos/1.png", "--out", "c.jsonl")
    assert bot.asked[-1]["prompt"] is None
    begun = bot.caption_prompt
    monkeypatch.setattr(bot, "caption_prompt", "Look!")
    run("photos/1.png", "photos/2.png", "--out", "c.jsonl")
    assert bot.asked[-1]["prompt"] == begun


def test_what_a_person_changed_in_the_output_stays(bot, photos):
    run("photos", "--out", "c.jsonl", code=3)
    text = Path("c.jsonl").read_text().replace("It is red 2.", "It is mine.")
    Path("c.jsonl").write_text(text)
    paint(photos / "6.png", 6)
    done = run("photos", "--out", "c.jsonl", code=3)
    assert rows() == WHOLE | {"photos/2.png": "It is mine.", "photos/6.png": "It is red 6."}
    assert "Captions of 'c.jsonl' that were changed by hand, and are kept so: 1." in done.stderr


def test_what_failed_is_tried_again_where_that_is_asked(bot, photos):
    run("photos", "--out", "c.jsonl", code=3)
    os.utime(photos / "bad.png", (1, 1))
    run("photos", "--out", "c.jsonl", code=3)
    paint(photos / "bad.png", 8)
    run("photos", "--out", "c.jsonl")  # it has changed
    assert rows()["photos/bad.png"] == "It is red 8."

    def fails(pictures, **settings):
        raise ValueError

    good, bot.caption = bot.caption, fails
    run("photos/1.png", "--out", "d.jsonl", code=3)
    bot.caption = good
    run("photos/1.png", "--out", "d.jsonl", code=3)
    assert rows(Path("d.jsonl")) == {"photos/1.png": "failed"}
    run("photos/1.png", "--out", "d.jsonl", "--retry")
    assert rows(Path("d.jsonl")) == {"photos/1.png": "It is red 1."}


def test_a_damaged_record_says_what_to_do(bot, photos):
    run("photos", "--out", "c.jsonl", code=3)
    record = Path(".c.jsonl.run")
    content = bytearray(record.read_bytes())
    content[:100] = b"x" * 100
    record.write_bytes(content)
    refused = run("photos", "--out", "c.jsonl", code=1)
    assert "is damaged" in refused.stderr and "remove it" in refused.stderr
    record.unlink()
    run("photos", "--out", "c.jsonl", code=3)
    assert rows() == WHOLE


def test_two_processes_do_not_write_one_output(bot, photos):
    run("photos/1.png", "--out", "c.jsonl")
    other = sqlite3.connect(".c.jsonl.run", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    refused = run("photos", "--out", "c.jsonl", code=1)
    other.close()
    assert "another process writes this output" in refused.stderr


def test_a_folder_that_cannot_be_written(bot, photos, monkeypatch):
    import minichat.captioning.journal as journal

    def refused(*arguments, **options):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(journal.sqlite3, "connect", refused)
    result = run("photos", "--out", "c.jsonl", code=1)
    assert "cannot be written (unable to open database file): make room or check the folder" in result.stderr
    assert not Path("c.jsonl").exists()


def test_a_full_disk_loses_nothing(bot, photos, monkeypatch):
    from minichat.captioning import outputs

    class Full(outputs.JsonLines):
        def _append(self, lines):
            lines = list(lines)
            if any(b"3.png" in line for line in lines):
                self._file.write(lines[0][:9])
                raise OSError(28, "No space left on device")
            super()._append(lines)

    with monkeypatch.context() as patch:
        patch.setattr("minichat.captioning.run.JsonLines", Full)
        stopped = CliRunner().invoke(cli.app, ["caption", "photos", "--out", "c.jsonl", "--batch-size", "1"])
        assert stopped.exit_code != 0
    assert not Path("c.jsonl").read_bytes().endswith(b"\n")
    run("photos", "--out", "c.jsonl", code=3)
    assert rows() == WHOLE and bot.count == 5


# --- what is one for all, or one for each


@pytest.fixture(scope="module")
def tiny():
    return tiny_bot()


def test_captions_come_in_order_each_when_it_is_there(tiny):
    """A window is one stream: the engine takes no more than it writes, and what one picture suffers no other does."""
    taken = []

    def jobs():
        for number in range(9):
            taken.append(number)
            yield Job(noise_picture(number), prompt="word " * 5000 if number == 4 else None)

    found = []
    for outcome in Captioner(tiny, 2, {"max_new_tokens": 4}).outcomes(jobs()):
        found.append(outcome)
        assert len(taken) <= len(found) + 4  # those that are written, and those that were encoded with them
    assert [outcome.error is None for outcome in found] == [number != 4 for number in range(9)]
    assert "too long" in found[4].error or "tokens" in found[4].error
    others = [number for number in range(9) if number != 4]
    assert [found[n].caption for n in others] == tiny.caption([noise_picture(n) for n in others], max_new_tokens=4)


def test_lengths_may_be_one_for_each(tiny):
    pictures = [noise_picture(number) for number in range(5)]
    lengths = [1, 9, 4, 9, 2]
    together = tiny.caption(pictures, max_new_tokens=lengths, batch_size=3)
    alone = [tiny.caption([p], max_new_tokens=n)[0] for p, n in zip(pictures, lengths, strict=True)]
    assert together == alone
    assert [one.finish for one in together] == [one.finish for one in alone]
    beams = tiny.caption(pictures, max_new_tokens=lengths, num_beams=2)
    assert beams == [
        tiny.caption([p], max_new_tokens=n, num_beams=2)[0] for p, n in zip(pictures, lengths, strict=True)
    ]
    with pytest.raises(SettingsError, match="2 values of max_new_tokens for 5 captions"):
        tiny.caption(pictures, max_new_tokens=[1, 2])
    with pytest.raises(SettingsError, match="max_new_tokens is 0"):
        tiny.caption(pictures[:2], max_new_tokens=[1, 0])
    with pytest.raises(SettingsError, match="max_new_tokens is 'x'"):
        tiny.caption([], max_new_tokens="x")
    assert tiny.caption([], max_new_tokens=3) == []


def test_seeds_may_be_one_for_each(tiny):
    pictures = [noise_picture(number) for number in range(3)]
    sampled = {"temperature": 1.0, "max_new_tokens": 12}
    together = tiny.caption(pictures, seed=[1, 2, 3], **sampled)
    assert together == [tiny.caption([p], seed=n, **sampled)[0] for n, p in enumerate(pictures, start=1)]
    same = tiny.caption([pictures[0]] * 2, seed=[1, 2], **sampled)
    assert same[0] == together[0] != same[1]


def test_a_picture_s_caption_does_not_depend_on_its_company(photos, tiny, monkeypatch):
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *arguments: tiny)
    for red in range(1, 6):
        noise_picture(red).save(photos / f"{red}.png")
    (photos / "bad.png").unlink()
    sampled = ["--temperature", "1", "--max-new-tokens", "8"]
    run("photos", "--out", "c.jsonl", "--seed", "3", *sampled)
    run("photos/4.png", "--out", "d.jsonl", "--seed", "3", *sampled)
    assert rows(Path("d.jsonl")).items() <= rows().items()
    draws = iter((7, 8))
    monkeypatch.setattr("secrets.randbits", lambda bits: next(draws))
    run("photos/2.png", "--out", "e.jsonl", *sampled)
    run("photos", "--out", "e.jsonl", "--batch-size", "2", *sampled)  # the seed that was drawn is kept
    run("photos", "--out", "f.jsonl", *sampled)
    run("photos", "--out", "g.jsonl", "--seed", "7", *sampled)
    assert rows(Path("e.jsonl")) == rows(Path("g.jsonl")) != rows(Path("f.jsonl"))


def test_small_pictures_give_the_same_caption_as_large_ones(photos, tiny, monkeypatch):
    """What is handed to the bot is as small as the model sees it, and the pixels are those of the file itself."""
    picture = noise_picture(1).resize((333, 77))
    picture.save(photos / "1.png")
    monkeypatch.setattr("minichat.cli.chat.load_bot", lambda *arguments: tiny)
    run("photos/1.png", "--out", "c.jsonl", "--max-new-tokens", "12")
    assert rows()["photos/1.png"] == tiny.caption([picture], max_new_tokens=12)[0]
    side = tiny.processor.image_processor.size["height"]
    small = picture.resize((side, side), Image.Resampling.BICUBIC)
    assert (to_pixels([small], side) == to_pixels([picture], side)).all()


# --- killed


def killed(folder: Path, form: str, kills: int) -> dict:
    command = [sys.executable, "-m", "tests.captioning_kills", str(folder), form, str(kills), "7"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_kills(told: dict, kills: int) -> None:
    assert told["killed"] == kills
    assert told["same"] == told["ended"] >= 1 and told["files"] >= 1
    assert told["more"] <= 4  # a batch: what was in flight


def test_a_run_that_is_killed_at_any_moment_goes_on(tmp_path):
    check_kills(killed(tmp_path, "jsonl", 20), 20)


@pytest.mark.parametrize("form", ["csv", "txt", "coco", "webdataset"])
def test_every_output_survives_it(tmp_path, form):
    check_kills(killed(tmp_path, form, 5), 5)


@pytest.mark.long
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "coco", "txt", "webdataset"])
def test_a_run_that_is_killed_at_many_moments_goes_on(tmp_path, form):
    check_kills(killed(tmp_path, form, 200), 200)


# --- vLLM in our engine's place


class Params:
    def __init__(self, **given):
        self.given = given


class Vllm:
    """A stand-in for the package vllm, which lets our own network write."""

    SamplingParams = Params

    def __init__(self, bot):
        self.bot, self.opened, self.asked = bot, {}, []

    def LLM(self, folder, **options):
        self.opened = {"folder": folder, **options}
        return self

    def generate(self, prompts, params, use_tqdm):
        self.asked.append((prompts, params))
        return [self._reply(*each) for each in zip(prompts, params, strict=True)]

    def _reply(self, prompt, params):
        ids, network = [], self.bot.model
        pictures = prompt["multi_modal_data"]["image"]
        pixels = self.bot.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            while len(ids) < params.given["max_tokens"] and not {*ids} & {*params.given["stop_token_ids"]}:
                embeds = network.embed(torch.tensor([prompt["prompt_token_ids"]]), pixels)
                embeds = torch.cat([embeds, *(network.get_input_embeddings()(torch.tensor([[one]])) for one in ids)], 1)
                ids.append(int(network(inputs_embeds=embeds, logits_to_keep=1).logits[0, -1].argmax()))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])


@pytest.fixture
def vllm(monkeypatch, tmp_path):
    tiny = tiny_bot(context=200)
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.processor.save_pretrained(tmp_path / "model")
    stand_in = Vllm(minichat.load(tmp_path / "model", device="cpu"))
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    return stand_in


def test_vllm_writes_what_our_engine_writes(vllm, photos):
    for number in range(1, 6):
        noise_picture(number).save(photos / f"{number}.png")
    flags = ("--model", "model", "--max-new-tokens", "5", "--batch-size", "2")
    run("photos", "--out", "ours.jsonl", *flags, code=3)
    run("photos", "--out", "theirs.jsonl", *flags, "--engine", "vllm", code=3)
    assert rows("theirs.jsonl") == rows("ours.jsonl") and len({*rows("ours.jsonl").values()}) > 2
    assert vllm.opened["folder"].endswith("model") and vllm.opened["dtype"] == "float32"
    assert (vllm.opened["max_model_len"], vllm.opened["max_num_seqs"]) == (200, 2)
    assert sum(len(prompts) for prompts, _ in vllm.asked) == 5
    # One engine goes on with what the other began: both tell the weights by the same hash.
    paint(photos / "6.png", 6)
    run("photos", "--out", "ours.jsonl", *flags, "--engine", "vllm", code=3)
    assert sum(len(prompts) for prompts, _ in vllm.asked) == 6


def test_what_vllm_does_otherwise_is_refused(vllm, photos):
    for flags, said in (
        (("--num-beams", "2"), "num_beams is 2"),
        (("--repetition-penalty", "1.5"), "repetition_penalty is 1.5"),
        (("--device", "cpu"), "--engine vllm chooses devices itself"),
        (("--workers", "2"), "--engine vllm chooses devices itself"),
    ):
        refused = run("photos", "--out", "c.jsonl", "--model", "model", "--engine", "vllm", *flags, code=1)
        assert said in refused.stderr
    assert vllm.asked == []


def test_a_prompt_that_is_too_long_costs_its_picture_alone(vllm, photos):
    (photos / "long.png").write_bytes((photos / "1.png").read_bytes())
    (photos / "prompts.txt").write_text("What is it?\n" + "What is it? " * 60 + "\n")
    flags = ("--model", "model", "--prompts", str(photos / "prompts.txt"), "--max-new-tokens", "5")
    run("photos", "--out", "ours.jsonl", *flags, code=3)
    run("photos", "--out", "theirs.jsonl", *flags, "--engine", "vllm", code=3)
    assert Path("theirs.jsonl").read_text() == (said := Path("ours.jsonl").read_text())
    assert said.count('"caption"') == 6 and said.count("context holds 200") == 6  # of the short prompt, of the long one


def test_without_vllm_it_says_what_to_install(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    refused = run("photos", "--model", "minichat-tiny", "--engine", "vllm", code=1)
    assert "pip install 'minichat[vllm]'" in refused.stderr
