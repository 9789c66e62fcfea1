"""Features that are kept: what is read is what was computed, for the picture, the model and the preprocessing."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from minichat import cli, images
from minichat.data import feature_cache
from minichat.data.dataset import Collator
from minichat.data.example import Example, Member, StoredPicture, Turn, Where
from minichat.data.feature_cache import FeatureCache, Origin, encode
from minichat.errors import DataError, SettingsError
from minichat.inference.bot import MiniChat
from minichat.model.loss import ProcessGroup
from minichat.train.config import Config, DataConfig, ModelConfig, Source
from minichat.train.data import read_data
from minichat.train.stages.finetune import Finetune
from tests.data_samples import example, rows_of, stored
from tests.tiny import counting, noise_picture, tiny_bot
from tests.tiny_network import KINDS
from tests.training import write_talks

COUNT = 11


@pytest.fixture(scope="module", params=KINDS)
def bot(request: pytest.FixtureRequest) -> MiniChat:
    return tiny_bot(kind=request.param)


@pytest.fixture(scope="module")
def one_bot() -> MiniChat:
    return tiny_bot()


@pytest.fixture
def pictures(tmp_path: Path) -> list[tuple[Where, StoredPicture]]:
    """Files, the content of one of them twice, one within a tar, and one in memory."""
    found = []
    for number in range(COUNT):
        path = tmp_path / f"{number}.png"
        noise_picture(0 if number == 1 else number).save(path)
        found.append(StoredPicture(path.name, path))
    (tmp_path / "some.tar").write_bytes(bytes(512) + found[2].read() + bytes(100))
    found[2] = StoredPicture("2.png", Member(tmp_path / "some.tar", 512, len(found[2].read())))
    found[3] = StoredPicture("3.png", found[3].read())
    return [(Where("talk.jsonl", number), picture) for number, picture in enumerate(found, start=1)]


def computed(bot: MiniChat, some: list[tuple[Where, StoredPicture]]) -> torch.Tensor:
    pixels = bot.processor.image_processor([picture.open() for _, picture in some])["pixel_values"]
    with torch.inference_mode():
        return bot.model.encode_features(pixels.to(bot.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_was_computed(dtype, pictures, tmp_path) -> None:
    """To the bit, where the same pictures are encoded together; in the precision of the model."""
    for kind in KINDS:
        bot = tiny_bot(kind=kind)
        bot.model.to(dtype)
        some = [*pictures[:1], *pictures[2:5]]
        cache = encode(bot.model, bot.processor, some, tmp_path / kind, batch_size=4)
        ours = torch.stack([cache[picture] for _, picture in some])
        assert ours.dtype == dtype
        assert torch.equal(ours, computed(bot, some))
        assert len(cache) == 4


def test_every_content_is_encoded_once(bot: MiniChat, pictures, tmp_path) -> None:
    told: list[int] = []
    with counting(bot) as counts:
        cache = encode(bot.model, bot.processor, pictures * 2, tmp_path / "kept", batch_size=4, progress=told.append)
    assert counts["pictures"] == len(cache) == COUNT - 1  # one is there under two names
    assert told == list(range(1, 2 * COUNT + 1))
    torch.testing.assert_close(
        torch.stack([cache[picture] for _, picture in pictures]), computed(bot, pictures), rtol=1e-5, atol=1e-5
    )
    with counting(bot) as counts:
        again = encode(bot.model, bot.processor, pictures, tmp_path / "kept")
    assert counts["pictures"] == 0
    assert all(torch.equal(again[picture], cache[picture]) for _, picture in pictures)
    assert all(picture in again for _, picture in pictures)
    assert stored(77) not in again
    size = (tmp_path / "kept" / "places-000.bin").stat().st_size
    encode(bot.model, bot.processor, pictures, tmp_path / "kept")
    assert (tmp_path / "kept" / "places-000.bin").stat().st_size == size


def test_no_picture_is_opened_again(one_bot: MiniChat, pictures, tmp_path, monkeypatch) -> None:
    """With features, neither reading a batch nor a second pass opens a file; the losses are the same."""
    bot = one_bot
    turns = [(Turn("user", (picture, "What?")), Turn("assistant", ("A boat.",))) for _, picture in pictures]
    rows = rows_of(bot, [Example(turn, where) for turn, (where, _) in zip(turns, pictures, strict=True)])
    some = [rows[number] for number in range(4)]
    plain = Collator(bot.processor)(some)
    cache = encode(bot.model, bot.processor, rows.pictures(), tmp_path / "kept", batch_size=4)

    def refused(*_: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(images, "load", refused)
    encode(bot.model, bot.processor, pictures, tmp_path / "kept")
    reading = StoredPicture.read
    monkeypatch.setattr(StoredPicture, "read", lambda p: reading(p) if isinstance(p.source, bytes) else refused())
    encode(bot.model, bot.processor, pictures, tmp_path / "kept")
    kept = Collator(bot.processor, cache)(some)
    assert "pixel_values" not in kept
    with torch.no_grad(), counting(bot) as counts:
        ours = bot.model(**kept, skip_logits=True).loss
    assert counts["pictures"] == 0
    with torch.no_grad():
        torch.testing.assert_close(ours, bot.model(**plain, skip_logits=True).loss, rtol=1e-6, atol=1e-6)


def test_a_picture_that_changes_is_told_from_what_it_was(one_bot: MiniChat, pictures, tmp_path) -> None:
    bot = one_bot
    cache = encode(bot.model, bot.processor, pictures, tmp_path / "kept")
    _, changed = pictures[0]
    before = cache[changed]
    noise_picture(500).save(changed.source)
    with pytest.raises(DataError, match=r"'0\.png' is not among the features in 'kept'"):
        cache[changed]
    after = encode(bot.model, bot.processor, pictures, tmp_path / "kept")[changed]
    assert not torch.equal(before, after)
    shutil.copy(pictures[4][1].source, changed.source)  # known under another name: no need to encode it again
    assert torch.equal(cache[changed], cache[pictures[4][1]])


def test_features_of_another_origin_are_refused(one_bot: MiniChat, pictures, tmp_path) -> None:
    encode(one_bot.model, one_bot.processor, pictures[:2], tmp_path / "kept")
    foreign = {
        "vision_model": lambda bot: bot.model.vision_model.embeddings.class_embedding,
        "bridge": lambda bot: bot.model.bridge.query_tokens,
    }
    for part, weight in foreign.items():
        other = tiny_bot()
        with torch.no_grad():
            weight(other)[0, 0, 0] += 1
        with pytest.raises(
            DataError, match=f"^The features in 'kept' .* {part} is [0-9a-f]{{12}},.* is [0-9a-f]{{12}}"
        ):
            encode(other.model, other.processor, pictures[:2], tmp_path / "kept")
        with pytest.raises(DataError, match=part):
            FeatureCache(tmp_path / "kept", Origin.of(other.model, other.processor))
    other = tiny_bot()
    other.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(DataError, match=r"preprocessing is 56 \[0\.4.* is 56 \[0\.5"):
        encode(other.model, other.processor, pictures[:2], tmp_path / "kept")
    other = tiny_bot()
    other.model.bfloat16()
    with pytest.raises(DataError, match=r"^[^\n]*kept[^\n]*$"):
        encode(other.model, other.processor, pictures[:2], tmp_path / "kept")
    assert Origin.of(tiny_bot().model, one_bot.processor) == Origin.of(one_bot.model, one_bot.processor)
    trained = tiny_bot()  # the projection and the LLM are no part of it
    with torch.no_grad():
        trained.model.projection.weight.zero_()
        trained.model.get_input_embeddings().weight.zero_()
    assert Origin.of(trained.model, one_bot.processor) == Origin.of(one_bot.model, one_bot.processor)


def test_a_folder_of_something_else_is_left_alone(one_bot: MiniChat, pictures, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poem.txt").write_text("…")
    with pytest.raises(DataError, match="'mine' exists and holds no features"):
        encode(one_bot.model, one_bot.processor, pictures, tmp_path / "mine")
    with pytest.raises(DataError, match="no features are kept there"):
        FeatureCache(tmp_path / "none", Origin.of(one_bot.model, one_bot.processor))
    (tmp_path / "mine" / feature_cache.FACTS).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        FeatureCache(tmp_path / "mine", Origin.of(one_bot.model, one_bot.processor))
    with pytest.raises(SettingsError, match="batch_size"):
        encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept", batch_size=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_processes_keep_the_same(one_bot: MiniChat, pictures, tmp_path, workers: int) -> None:
    """Two processes fill one cache, in any order; each does its own part."""
    bot = one_bot
    with counting(bot) as counts:
        for rank in (1, 0):
            encode(
                bot.model, bot.processor, pictures, tmp_path / "kept", workers=workers, rank=rank, processes=2,
                batch_size=1,
            )  # fmt: skip
    assert COUNT - 1 <= counts["pictures"] <= COUNT  # the same content under two names may be in both parts
    cache = FeatureCache(tmp_path / "kept", Origin.of(bot.model, bot.processor))
    alone = encode(bot.model, bot.processor, pictures, tmp_path / "alone", batch_size=1)
    assert len(cache) == len(alone) == COUNT - 1
    assert all(torch.equal(cache[picture], alone[picture]) for _, picture in pictures)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_named(one_bot: MiniChat, pictures, tmp_path, workers: int) -> None:
    pictures[5][1].source.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^talk\.jsonl:6: the picture '5\.png'[^\n]*$"):
        encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept", batch_size=2, workers=workers)
    pictures[5][1].source.unlink()
    with pytest.raises(DataError, match=r"^talk\.jsonl:6: the picture '5\.png' is missing[^\n]*$"):
        encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept", batch_size=2, workers=workers)
    noise_picture(5).save(pictures[5][1].source)
    with counting(one_bot) as counts:
        encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept", batch_size=2, workers=workers)
    assert counts["pictures"] == COUNT - 1 - 4  # those before it were kept


def test_what_is_no_number_is_not_kept(pictures, tmp_path) -> None:
    bot = tiny_bot()
    with torch.no_grad():
        bot.model.bridge.query_tokens[0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"no number in the picture '0\.png'"):
        encode(bot.model, bot.processor, pictures, tmp_path / "kept")


def test_damage_is_found(one_bot: MiniChat, pictures, tmp_path) -> None:
    cache = encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept")
    file = tmp_path / "kept" / "records-000.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"'0\.png' are damaged, in records-000\.bin of 'kept': compute them again"):
        FeatureCache(cache.folder, cache.origin)[pictures[0][1]]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_damaged_is_computed_anew_and_that_is_said(one_bot: MiniChat, pictures, tmp_path, processes) -> None:
    """Also where another process had written it, in a file that comes later."""
    parts = [{"rank": rank, "processes": processes} for rank in range(processes)]
    for part in parts:
        cache = encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept", **part)
    whole = [cache[picture].clone() for _, picture in pictures]
    records = tmp_path / "kept" / f"records-{processes - 1:03}.bin"
    content = bytearray(records.read_bytes())
    content[-1] ^= 1
    records.write_bytes(content)
    said: list[str] = []
    with counting(one_bot) as counts:
        again = encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept", say=said.append)
    assert counts["pictures"] == 1
    assert said == [f"Features in {records.name} of 'kept' were damaged: those are computed anew."]
    assert all(torch.equal(again[picture], one) for (_, picture), one in zip(pictures, whole, strict=True))


def test_a_full_disk_is_said_and_costs_nothing_else(one_bot: MiniChat, pictures, tmp_path, monkeypatch) -> None:
    real, room = os.fsync, iter(range(4))

    def fsync(file: int) -> None:
        if next(room, None) is None:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(feature_cache.os, "fsync", fsync)
    monkeypatch.setattr(feature_cache, "_SAVE_EVERY", 0)
    with pytest.raises(DataError, match=r"^The features cannot be written to 'kept' \(No space left"):
        encode(one_bot.model, one_bot.processor, pictures, tmp_path / "kept", batch_size=2)
    monkeypatch.setattr(feature_cache.os, "fsync", real)
    check_goes_on(one_bot, pictures, tmp_path / "kept")


def check_goes_on(bot: MiniChat, pictures, folder: Path) -> None:
    """Whatever is there now can be read, and a new pass makes it whole."""
    cache = FeatureCache(folder, Origin.of(bot.model, bot.processor))
    held = {p.name for _, p in pictures if p in cache}
    with counting(bot) as counts:
        whole = encode(bot.model, bot.processor, pictures, folder, batch_size=1)
    assert counts["pictures"] == COUNT - 1 - len(held - ({"1.png"} if "0.png" in held else set()))
    expected = computed(bot, pictures)
    for (_, picture), wanted in zip(pictures, expected, strict=True):
        torch.testing.assert_close(whole[picture], wanted, rtol=1e-4, atol=1e-4)
        if picture.name in held:
            assert torch.equal(cache[picture], whole[picture])


def test_files_cut_anywhere_are_read_and_mended(one_bot: MiniChat, pictures, tmp_path) -> None:
    """A killed process leaves a journal that is shorter than its records; a power cut may leave anything."""
    encode(one_bot.model, one_bot.processor, pictures, tmp_path / "whole", batch_size=1)
    draw = random.Random(0)
    for number in range(12):
        folder = tmp_path / f"cut{number}"
        shutil.copytree(tmp_path / "whole", folder)
        for file in sorted(folder.glob("*.bin")):
            os.truncate(file, draw.randrange(file.stat().st_size + 1))
        check_goes_on(one_bot, pictures, folder)


def kill_while_encoding(bot: MiniChat, pictures, folder: Path, after: float) -> bool:
    """Fork a process that encodes, and kill it after so many seconds; whether it was still at work."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            feature_cache._SAVE_EVERY = 0
            encode(bot.model, bot.processor, pictures, folder, batch_size=1)
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_often(bot: MiniChat, pictures, tmp_path: Path, times: int) -> None:
    torch.set_num_threads(1)  # a forked process has no threads of its parent's
    start = time.monotonic()
    encode(bot.model, bot.processor, pictures, tmp_path / "timed", batch_size=1)
    whole, draw = time.monotonic() - start, random.Random(0)
    hits = 0
    for number in itertools.count():
        folder = tmp_path / f"{number}"
        feature_cache.init_folder(folder, Origin.of(bot.model, bot.processor))
        hits += kill_while_encoding(bot, pictures, folder, draw.uniform(0, 2 * whole))
        check_goes_on(bot, pictures, folder)
        if hits == times:
            return


def test_killed_at_any_moment(one_bot: MiniChat, pictures, tmp_path) -> None:
    killed_often(one_bot, pictures, tmp_path, 5)


@pytest.mark.long
def test_killed_at_a_hundred_moments(one_bot: MiniChat, pictures, tmp_path) -> None:
    killed_often(one_bot, pictures, tmp_path, 100)


def test_a_batch_of_features(one_bot: MiniChat, tmp_path) -> None:
    """Rows with none, one and several pictures, whose features come in the order of their slots."""
    bot = one_bot
    counts = enumerate((2, 0, 3), start=1)
    rows = rows_of(bot, [example(("What?", "A boat."), pictures=count, line=line) for line, count in counts])
    cache = encode(bot.model, bot.processor, rows.pictures(), tmp_path / "kept")
    batch = Collator(bot.processor, cache)(rows)
    wanted = torch.stack([cache[picture] for row in rows for picture in row.pictures])
    assert torch.equal(batch["image_features"], wanted)
    assert batch["image_features"].shape == (5, *cache.origin.shape)
    assert "image_features" not in Collator(bot.processor, cache)([rows[1]])
    lost = rows_of(bot, [example(("What?", "A boat."), pictures=1, line=9)])
    with pytest.raises(DataError, match=r"^talk\.jsonl:9: the picture '900\.png' is not among the features"):
        Collator(bot.processor, cache)(lost)


def test_the_command(tmp_path: Path) -> None:
    """Features of a data set for the trainer, which then has nothing left to compute."""
    write_talks(tmp_path / "talks.jsonl", 6)
    arguments = ["data", "features", str(tmp_path / "talks.jsonl"), "--out", str(tmp_path / "kept"), "--device", "cpu"]
    arguments += ["--model", "minichat-tiny"]
    for _ in range(2):
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
        assert (result.stdout, result.stderr) == ("", f"6 different pictures are in {tmp_path / 'kept'}.\n")
    data = DataConfig((Source(str(tmp_path / "talks.jsonl")),), feature_cache=str(tmp_path / "kept"))
    config = Config(model=ModelConfig("minichat-tiny", device="cpu"), data=data)
    stage = Finetune(config, torch.device("cpu"))
    with counting(stage.bot) as counts:
        read_data(config, stage, ProcessGroup(0, 1), print)
    assert counts["pictures"] == 0
    result = CliRunner().invoke(cli.app, [*arguments, "--dtype", "bfloat16"])
    assert result.exit_code == 1
    assert result.stderr.startswith("minichat: The features in 'kept' were not computed by this model")
    assert result.stderr.count("\n") == 1
    (tmp_path / "pictures" / "0-0.png").unlink()
    result = CliRunner().invoke(cli.app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 2)  # the others are there
    assert "talks.jsonl:1: the picture 'pictures/0-0.png' is missing" in result.stderr
    assert result.stderr.endswith("1 cannot be opened.\n")
