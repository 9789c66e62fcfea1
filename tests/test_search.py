"""`minichat.search`: what is found is what a plain loop finds; the index follows its folder, whatever happens to it."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import threading
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import minichat
from minichat import cli, images
from minichat.errors import DataError, ImageError, ModelError, PromptError, SettingsError
from minichat.evaluate.tasks import Finder
from minichat.model.qformer_pretrain import rerank
from minichat.prompt.tokenizer import read_wordpiece, tokenize
from minichat.search import Hit, Index, Reader, contact_sheet, load_reader
from minichat.search.index import Store
from minichat.weights.qformer import Stage1, write_stage1
from tests.tiny_stage1 import SIDE, VOCABULARY, WORDS, tiny_pretraining

LONG_AGO = 1_600_000_000  # seconds


@pytest.fixture(scope="module")
def stage1(tmp_path_factory) -> Stage1:
    vocabulary = tmp_path_factory.mktemp("words")
    words = [*WORDS, *(f"##{i}" for i in range(VOCABULARY - 1 - len(WORDS)))]
    (vocabulary / "vocab.txt").write_text("\n".join(words) + "\n")
    return Stage1(tiny_pretraining(), read_wordpiece(vocabulary))


@pytest.fixture(scope="module")
def model(stage1, tmp_path_factory) -> Path:
    """Its folder."""
    return write_stage1(tmp_path_factory.mktemp("stage1") / "model", stage1.model, stage1.tokenizer)


class Watched(Reader):
    """A reader that counts the pictures it sees."""

    seen = 0

    def see(self, pixels):
        self.seen += len(pixels)
        return super().see(pixels)


@pytest.fixture
def reader(stage1) -> Watched:
    return Watched(stage1)


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def put(path: Path, seed: int) -> Path:
    """A picture whose file was made long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path)
    os.utime(path, (LONG_AGO + seed, LONG_AGO + seed))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed in range(9):
        put(tmp_path / "pictures" / ("below" if seed % 3 == 0 else ".") / f"{seed}.png", seed)
    return tmp_path / "pictures"


@pytest.fixture
def where(tmp_path) -> Path:
    return tmp_path / "index"


def names(hits: list[Hit]) -> list[str]:
    return [hit.path.name for hit in hits]


def by_hand(stage1: Stage1, folder: Path, text: str) -> dict[str, tuple[float, float, float]]:
    """For each file its similarity, and the logit and the probability that they match, one pair at a time."""
    words = tokenize(stage1.tokenizer, [text], 16)
    found = {}
    with torch.no_grad():
        read = stage1.model.text_embeddings(**words)[0]
        for path in folder.rglob("*.png"):
            pixels = images.to_pixels([images.load(path)], SIDE)
            patches = stage1.model.encode_patches(pixels)
            similarity = max(float(query @ read) for query in stage1.model.image_embeddings(patches)[0])
            logits = stage1.model.match(patches, **words)[0]
            found[path.name] = similarity, float(logits[1]), float(logits.softmax(0)[1])
    return found


QUERIES = ["a red star left of a blue circle", "square", "blue squares"]


# --- what is found


@pytest.mark.parametrize("text", QUERIES)
def test_by_contrast_the_most_similar_come_first(stage1, reader, folder, where, text):
    hits = Index.open(folder, reader, where=where, batch_size=4).find(text, top=9, rerank=0)
    truth = by_hand(stage1, folder, text)
    assert names(hits) == sorted(truth, key=lambda name: -truth[name][0])
    assert [hit.similarity for hit in hits] == pytest.approx([truth[name][0] for name in names(hits)], abs=2e-3)
    assert all(hit.matching is None and hit.score == hit.similarity for hit in hits)


@pytest.mark.parametrize("text", QUERIES)
@pytest.mark.parametrize("kept", [True, False], ids=["kept patches", "patches made again"])
def test_matching_puts_the_most_similar_in_order(stage1, reader, folder, where, text, kept, monkeypatch):
    """The four most similar, by similarity + logit as in BLIP-2; no others, though they may match better."""
    monkeypatch.setattr("minichat.search.index._KEPT", 2**16 if kept else 0)
    hits = Index.open(folder, reader, where=where).find(text, top=4, rerank=4)
    truth = by_hand(stage1, folder, text)
    best = sorted(truth, key=lambda name: -truth[name][0])[:4]
    assert names(hits) == sorted(best, key=lambda name: -sum(truth[name][:2]))
    near = 1e-5 if not kept else 0.02  # kept patches are in bfloat16
    assert [hit.score for hit in hits] == pytest.approx([sum(truth[name][:2]) for name in names(hits)], abs=near + 2e-3)
    assert [hit.matching for hit in hits] == pytest.approx([truth[name][2] for name in names(hits)], abs=near)
    assert reader.seen == (9 if kept else 13)


def test_pictures_are_found_in_the_order_that_is_evaluated(stage1, reader, folder, where, monkeypatch):
    """What `minichat evaluate retrieval` measures is what a search shows."""
    monkeypatch.setattr("minichat.search.index._KEPT", 0)  # kept patches are rounded
    index = Index.open(folder, reader, where=where)
    paths = sorted(folder.rglob("*.png"))
    shown = [SimpleNamespace(open=partial(images.load, path)) for path in paths]
    found = Finder(Reader(stage1)).compare(shown, QUERIES)
    for k in (0, 4, 9):
        order = rerank(found.similarity().T, lambda text, picture: found.match(picture, text), k)
        for text, row in zip(QUERIES, order.tolist(), strict=True):
            hits = index.find(text, top=min(k, 9) or 9, rerank=k)
            assert [hit.path for hit in hits] == [paths[place] for place in row][: len(hits)]


def test_as_many_are_matched_as_are_shown(reader, folder, where):
    index = Index.open(folder, reader, where=where)
    assert all(hit.matching is not None for hit in index.find("star", top=7, rerank=2))
    assert names(index.find("star", top=3, rerank=9)) == names(index.find("star", top=9, rerank=9))[:3]
    assert len(index.find("star", top=100)) == 9


def test_a_picture_finds_itself_and_what_is_like_it(reader, folder, where):
    """The mean over the queries of the cosine; what is almost the same comes second."""
    almost = np.asarray(noise(4), dtype=np.int16) + 2
    Image.fromarray(almost.clip(0, 255).astype(np.uint8)).save(folder / "almost.png")
    index = Index.open(folder, reader, where=where)
    hits = index.find_image(folder / "4.png", top=10)
    assert names(hits)[:2] == ["4.png", "almost.png"]
    assert hits[0].score == pytest.approx(1, abs=2e-3)
    _, one = reader.see(reader.pixels(folder / "4.png"))
    for hit in hits:
        _, other = reader.see(reader.pixels(hit.path))
        assert hit.score == pytest.approx(float((one * other).sum(-1).mean()), abs=2e-3)
    assert names(index.find_image(noise(4), top=1)) == ["4.png"]


def test_what_cannot_be_asked_for_is_refused(reader, folder, where):
    index = Index.open(folder, reader, where=where)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(SettingsError, match="top is"):
            index.find("star", top=wrong)
    with pytest.raises(SettingsError, match="rerank is -1"):
        index.find("star", rerank=-1)
    with pytest.raises(SettingsError, match="batch_size is 0"):
        index.update(batch_size=0)
    with pytest.raises(PromptError, match="empty"):
        index.find("  ")
    for wrong in ("\udcff red", "half \ud800"):
        with pytest.raises(PromptError, match=r"no valid text: write them in UTF-8"):
            index.find(wrong)
    with pytest.raises(ImageError, match="not found"):
        index.find_image(folder / "absent.png")
    assert len(index.find("star " * 500)) == 9  # cut to what the Q-Former can read


# --- the index follows the folder


def opened(folder, reader, where) -> tuple[Index, int]:
    """The index, and how many pictures were seen for it."""
    reader.seen = 0
    index = Index.open(folder, reader, where=where)
    return index, reader.seen


def check_up_to_date(index: Index, reader: Reader, folder: Path, anew: Path) -> None:
    """An index that was kept up to date finds what one finds that is made now."""
    fresh = Index.open(folder, Reader(Stage1(reader.model, reader.tokenizer)), where=anew)
    for text in QUERIES:
        check_alike(index.find(text, top=50), fresh.find(text, top=50))


def check_alike(hits: list[Hit], others: list[Hit]) -> None:
    """Equal but for what rounds otherwise in another batch; kept patches are in bfloat16."""
    assert [hit.path for hit in hits] == [hit.path for hit in others]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in others], abs=0.02)
    assert [hit.similarity for hit in hits] == pytest.approx([hit.similarity for hit in others], abs=1e-3)


def test_nothing_is_seen_twice(reader, folder, where):
    assert opened(folder, reader, where)[1] == 9
    index, seen = opened(folder, reader, where)
    assert (len(index), seen) == (9, 0)
    assert index.update() == 0


def test_new_changed_renamed_copied_and_gone(reader, folder, where, tmp_path):
    opened(folder, reader, where)
    put(folder / "new.png", 20)
    put(folder / "1.png", 21)  # another picture of the same size in bytes or not: its time is another
    (folder / "2.png").rename(folder / "below" / "renamed.png")
    (folder / "copy.png").write_bytes((folder / "4.png").read_bytes())
    (folder / "5.png").unlink()
    index, seen = opened(folder, reader, where)
    assert seen == 2
    found = names(index.find("star", top=50))
    assert sorted(found) == sorted(
        ["0.png", "1.png", "3.png", "4.png", "6.png", "7.png", "8.png", "copy.png", "new.png", "renamed.png"]
    )
    check_up_to_date(index, reader, folder, tmp_path / "anew")


def test_a_change_within_the_clock_s_step_is_noticed(reader, folder, where):
    """A file that was only just written may be written again with the same size and time."""
    Image.new("RGB", (5, 5), "red").save(folder / "young.bmp")
    kept = (folder / "young.bmp").stat()
    before, _ = opened(folder, reader, where)
    Image.new("RGB", (5, 5), "blue").save(folder / "young.bmp")
    os.utime(folder / "young.bmp", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    after, seen = opened(folder, reader, where)
    assert seen == 1
    assert before.find("star", 50) != after.find("star", 50)


def test_files_that_cannot_be_opened_are_named_and_the_rest_is_found(reader, folder, where):
    (folder / "broken.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:500])
    (folder / "nowhere.png").symlink_to(folder / "absent.png")
    os.mkfifo(folder / "pipe.png")
    index, seen = opened(folder, reader, where)
    assert seen == len(index) == 9
    assert [each.path.name for each in index.skipped] == [
        "broken.jpg",
        "cut.png",
        "empty.png",
        "nowhere.png",
        "pipe.png",
    ]
    assert all(each.path.name in each.error and each.error.endswith(".") for each in index.skipped)
    put(folder / "broken.jpg", 30)  # mended
    (folder / "3.png").unlink(missing_ok=True)
    (folder / "4.png").write_text("broken now")
    index, _ = opened(folder, reader, where)
    found = names(index.find("star", 50))
    assert "broken.jpg" in found and "4.png" not in found
    assert "4.png" in {each.path.name for each in index.skipped}


def test_a_picture_that_goes_after_the_folder_was_looked_through_is_left_out(reader, folder, where, monkeypatch):
    """Where it has to be read again to be matched."""
    monkeypatch.setattr("minichat.search.index._KEPT", 0)
    index = Index.open(folder, reader, where=where)
    first = names(index.find("star", top=9))
    (folder / first[1] if (folder / first[1]).exists() else folder / "below" / first[1]).unlink()
    assert names(index.find("star", top=9)) == [name for name in first if name != first[1]]
    assert len(index.find("star", top=3)) == 3


@pytest.mark.parametrize(
    "name", ["ünï.png", "雪.png", "two\nlines.png", os.fsdecode(b"no\xffunicode.png"), "a'b\".png"]
)
def test_any_file_name(reader, folder, where, name):
    put(folder / "plain.png", 40).rename(folder / name)
    index, _ = opened(folder, reader, where)
    assert index.find_image(noise(40), top=1)[0].path == folder / name
    assert opened(folder, reader, where)[1] == 0


def test_a_folder_by_another_name_has_the_same_index(reader, folder, where, monkeypatch):
    opened(folder, reader, where)
    monkeypatch.chdir(folder.parent)
    Path("link").symlink_to(folder)
    for other in ("pictures", "./below/../pictures", "link"):
        Path("below").mkdir(exist_ok=True)
        index, seen = opened(other, reader, where)
        assert seen == 0
        assert index.find("star", top=1)[0].path.is_relative_to(other)


def test_another_model_or_precision_has_an_index_of_its_own(stage1, reader, folder, where, tmp_path):
    opened(folder, reader, where)
    other = Watched(Stage1(tiny_pretraining(seed=1), stage1.tokenizer))
    index, seen = opened(folder, other, where)
    assert seen == 9
    check_up_to_date(index, other, folder, tmp_path / "anew")
    half = Watched(Stage1(tiny_pretraining(), stage1.tokenizer), dtype=torch.bfloat16)
    assert opened(folder, half, where)[1] == 9
    assert opened(folder, reader, where)[1] == 0
    assert len(list(where.glob("*.sqlite"))) == 3


def test_by_default_the_index_is_in_the_user_s_cache(reader, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MINICHAT_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(folder.rglob("*"))
    index = Index.open(folder, reader)
    assert index.file.parent == tmp_path / "cache" / "minichat" / "search"
    assert index.file.name.startswith("pictures-")
    assert sorted(folder.rglob("*")) == before


def test_folders_without_pictures_are_refused(reader, tmp_path, where):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No pictures"):
        Index.open(tmp_path / "empty", reader, where=where)
    for wrong in (tmp_path / "absent", put(tmp_path / "one.png", 1)):
        with pytest.raises(DataError, match="is not a folder"):
            Index.open(wrong, reader, where=where)


def test_an_index_that_cannot_be_kept_says_so(reader, folder, tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be kept in .*file.* another folder"):
        Index.open(folder, reader, where=tmp_path / "file")
    index, _ = opened(folder, reader, where)
    index.file.write_bytes(b"no data base at all, and longer than its header would be" * 20)
    with pytest.raises(DataError, match=r"is damaged .*: remove that file"):
        Index.open(folder, reader, where=where)


def test_what_is_no_number_is_not_kept(stage1, folder, where):
    broken = tiny_pretraining()
    with torch.no_grad():
        broken.vision_projection.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="no number"):
        Index.open(folder, Reader(Stage1(broken, stage1.tokenizer)), where=where)


def test_opening_holds_what_is_compared_once(reader, folder, where, tmp_path, monkeypatch):
    opened(folder, reader, where)
    table, reads = Store.table, []
    monkeypatch.setattr(Store, "table", lambda store: reads.append(1) or table(store))
    index, _ = opened(folder, reader, where)
    assert len(index) == 9 and len(index.find("star", 50)) == 9
    assert len(reads) == 1
    store = Store(tmp_path / "large.sqlite", (32, 256), 8)
    with store.writing() as writer:
        for number in range(500):
            writer.add_picture(b"%d" % number, torch.full((32, 256), number), None)
            writer.add_file(b"%03d" % number, 0, 0, b"%d" % number)
    tracemalloc.start()
    try:
        found = table(store)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert torch.equal(found.embeddings[:, 0, 0], torch.arange(500).half())
    assert peak < 1.5 * found.embeddings.nbytes


def test_folders_that_are_linked_are_searched(reader, folder, where, tmp_path):
    (tmp_path / "away").mkdir()
    put(tmp_path / "away" / "far.png", 70)
    (folder / "link").symlink_to(tmp_path / "away")
    (tmp_path / "away" / "back").symlink_to(folder)
    index, seen = opened(folder, reader, where)
    assert seen == len(index) == 10
    assert index.find_image(noise(70), top=1)[0].path == folder / "link" / "far.png"


# --- whatever stops it


class Killed(BaseException):
    pass


def test_indexing_that_is_stopped_goes_on(stage1, reader, folder, where, tmp_path):
    class Stopping(Watched):
        def see(self, pixels):
            if self.seen >= 4:
                raise Killed
            return super().see(pixels)

    with pytest.raises(Killed):
        Index.open(folder, Stopping(stage1), where=where, batch_size=2)
    reader.seen = 0
    index = Index.open(folder, reader, where=where, batch_size=2)
    assert reader.seen == 9 - 4
    check_up_to_date(index, reader, folder, tmp_path / "anew")


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=pytest.mark.long if moment % 9 else ()) for moment in range(0, 30, 3)]
)
def test_killed_at_any_write_the_index_is_whole(stage1, reader, folder, where, tmp_path, moment):
    """A process that is forked and killed at a statement of its own, whichever it is."""
    opened(folder, reader, where)
    for seed in range(50, 54):
        put(folder / f"{seed}.png", seed)
    (folder / "8.png").unlink()
    child = os.fork()
    if child == 0:
        try:
            die_at_statement(moment)
            Index.open(folder, reader, where=where, batch_size=1)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it came to its end: there are fewer statements"
    index, _ = opened(folder, reader, where)
    assert len(index) == 12
    check_up_to_date(index, reader, folder, tmp_path / "anew")
    with sqlite3.connect(index.file) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def die_at_statement(moment: int) -> None:
    """Kill this process before its statement of that number."""
    torch.set_num_threads(1)
    from minichat.search import index as store

    store._SAVE_EVERY = 0
    connect, count = sqlite3.connect, iter(range(10**6))

    def watched(*arguments, **options):
        database = connect(*arguments, **options)
        database.set_trace_callback(lambda _: next(count) == moment and os.kill(os.getpid(), signal.SIGKILL))
        return database

    sqlite3.connect = watched


def test_two_at_once(stage1, reader, folder, where, tmp_path):
    """One waits for the other, and both find everything; a picture is seen once."""
    for seed in range(60, 80):
        put(folder / f"{seed}.png", seed)
    readers, found, waited = [Watched(stage1), Watched(stage1)], [], []

    def index(own):
        found.append(Index.open(folder, own, where=where, batch_size=2, waiting=lambda: waited.append(own)))

    threads = [threading.Thread(target=index, args=(own,)) for own in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(each) for each in found] == [29, 29]
    assert sum(own.seen for own in readers) == 29
    check_alike(found[0].find("star", 50), found[1].find("star", 50))


def test_a_model_that_finds_is_told_from_one_that_chats(model):
    with pytest.raises(ModelError, match=r"no chat model: it finds pictures .minichat search."):
        minichat.load(model)
    assert minichat.search.Index is Index


# --- contact sheet


def test_a_contact_sheet_shows_each_picture_in_its_place(folder):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]
    hits = []
    for number, colour in enumerate(colours):
        Image.new("RGB", (30, 30), colour).save(folder / f"{number} {'long ' * 20}.png")
        hits.append(Hit(folder / f"{number} {'long ' * 20}.png", 1 - number / 10))
    hits.append(Hit(folder / "gone.png", 0.1))
    sheet = contact_sheet(hits, side=100)
    centres = [
        sheet.getpixel((12 + 50 + 112 * (i % 5), 12 + 50 + (i // 5) * (sheet.height - 12) // 2)) for i in range(7)
    ]
    assert centres[:6] == colours
    assert len({*centres}) == 7
    with pytest.raises(DataError, match="nothing to put"):
        contact_sheet([])


# --- the command


def run(*arguments, **options):
    return CliRunner().invoke(cli.app, ["search", *map(str, arguments), "--device", "cpu"], **options)


@pytest.fixture
def at(model, where):
    return "--model", model, "--index", where


@pytest.fixture
def read_once(stage1, monkeypatch):
    """Commands have the model that was made at the beginning; it is read from its folder by other tests."""
    monkeypatch.setattr("minichat.weights.qformer.read_stage1", lambda name: stage1)


def test_the_command_prints_a_line_for_each(model, reader, folder, where, at):
    result = run("a red star", folder, *at, "--top", 3, "--rerank", 5)
    assert result.exit_code == 0, result.stderr
    hits = Index.open(folder, load_reader(model, "cpu"), where=where).find("a red star", top=3, rerank=5)
    assert result.stdout == "".join(f"{hit.score:.4f}  {hit.path}\n" for hit in hits)
    assert result.stderr == ""


def test_the_command_as_json(folder, at, read_once):
    os.rename(folder / "1.png", folder / os.fsdecode(b"1\xff.png"))
    records = [json.loads(line) for line in run("star", folder, *at, "--json").stdout.splitlines()]
    assert len(records) == 9
    assert all(set(each) == {"image", "score", "similarity", "matching"} for each in records)
    assert {os.fsencode(Path(each["image"]).name) for each in records} >= {b"1\xff.png", b"2.png"}
    contrast = [json.loads(line) for line in run("star", folder, *at, "--json", "--rerank", 0).stdout.splitlines()]
    assert all(each["score"] == each["similarity"] and each["matching"] is None for each in contrast)


def test_the_command_finds_by_a_picture_and_makes_a_sheet(folder, at, read_once, tmp_path):
    sheet = tmp_path / "sheet.png"
    result = run("--image", folder / "7.png", folder, *at, "--top", 6, "--sheet", sheet)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 6
    assert result.stdout.splitlines()[0].endswith("7.png")
    with Image.open(sheet) as shown:
        assert shown.format == "PNG" and shown.width > shown.height
    again = run("star", folder, *at, "--sheet", sheet)
    assert again.exit_code == 1 and "exists already" in again.stderr


def test_the_command_answers_the_lines_of_a_pipe(folder, at, read_once):
    result = run("-", folder, *at, "--top", 2, input="star\n\nblue circle\n")
    assert result.exit_code == 0, result.stderr
    answers = result.stdout.split("\n\n")
    assert answers[0] + "\n" == run("star", folder, *at, "--top", 2).stdout
    assert answers[1] + "\n" == run("blue circle", folder, *at, "--top", 2).stdout
    queries = [
        json.loads(line)["query"]
        for line in run("-", folder, *at, "--json", "--top", 1, input="a\nb").stdout.splitlines()
    ]
    assert queries == ["a", "b"]


def test_a_line_that_is_no_text_costs_the_others_nothing(folder, at, read_once):
    """However stdin is read: as bytes that are no UTF-8 come in a test, or escaped as in the locale C.UTF-8."""
    result = run("-", folder, *at, "--top", 1, input=b"star\n\nblue \xff\nring\n")
    assert result.exit_code == 3
    assert result.stderr.startswith("minichat: line 3: Not all of these bytes are text in UTF-8")
    star, ring = (run(query, folder, *at, "--top", 1).stdout for query in ("star", "ring"))
    assert result.stdout == f"{star}\n\n{ring}\n"
    result = run(os.fsdecode(b"\xff red"), folder, *at)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "minichat: The words to search for are no valid text: write them in UTF-8.\n"


def test_the_command_names_a_folder_that_cannot_be_read(folder, at, read_once, monkeypatch):
    scandir = os.scandir

    def refusing(path="."):
        if Path(os.fspath(path)).name == "below":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # to root no permission is denied
    result = run("star", folder, *at)
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 6
    assert re.fullmatch(r"minichat: \S+below: The folder '\S+below' cannot be read \(Permission .*\n", result.stderr)


def test_a_folder_that_cannot_be_read_for_a_while_is_not_forgotten(folder, reader, where, monkeypatch):
    whole = names(Index.open(folder, reader, where=where).find("star", top=9))
    scandir = os.scandir

    def refusing(path="."):
        if Path(os.fspath(path)).name == "below":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    with monkeypatch.context() as closed:
        closed.setattr(os, "scandir", refusing)
        index = Index.open(folder, reader, where=where)
        assert names(index.find("star", top=9)) == whole
        assert [each.path.name for each in index.skipped] == ["below"]
    assert index.update() == 0  # nothing is read anew


def test_the_command_names_what_it_skips(folder, at, read_once):
    (folder / "broken.jpg").write_text("no picture")
    os.rename(folder / "1.png", folder / "two\nlines.png")
    result = run("star", folder, *at)
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 9
    assert '"' in next(line for line in result.stdout.splitlines() if "two" in line)
    assert re.fullmatch(r"minichat: \S+broken.jpg: “broken.jpg” is not a picture .*\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["star"], 2, "QUERY and FOLDER"),
        (["star", "a", "b"], 2, "QUERY and FOLDER"),
        (["star", "FOLDER", "--image", "x.png"], 2, "QUERY and FOLDER"),
        (["star", "FOLDER", "--sheet", "x.jpg"], 2, "ends in .png"),
        (["-", "FOLDER", "--sheet", "x.png"], 2, "one query"),
        (["FOLDER", "--image", "x.png", "--rerank", "5"], 2, "--rerank is for words"),
        (["star", "absent"], 1, "is not a folder"),
        (["", "FOLDER"], 1, "empty"),
        (["star", "FOLDER", "--top", "0"], 1, "top is 0"),
        (["--image", "absent.png", "FOLDER"], 1, "absent.png"),
        (["star", "FOLDER", "--model", "minichat-tiny"], 1, "Blip2ForImageTextRetrieval"),
        (["star", "FOLDER", "--device", "nothing"], 1, "device"),
    ],
)
def test_the_command_says_what_is_wrong(folder, at, arguments, code, said):
    given = [str(folder) if each == "FOLDER" else each for each in arguments]
    result = CliRunner().invoke(cli.app, ["search", *map(str, at), "--device", "cpu", *given])
    assert result.exit_code == code
    assert said in " ".join(result.stderr.split()).replace("│ ", "")
    assert result.stdout == ""
