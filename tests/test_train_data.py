"""What a run reads: epochs, streams, instructions drawn anew; the same for any number of processes and workers."""

from __future__ import annotations

import io
import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from minichat.data import formats
from minichat.errors import DataError, ModelError, SettingsError
from minichat.model.loss import ProcessGroup
from minichat.prompt.render import IGNORED
from minichat.train.data import Data, division, read_data
from minichat.train.stages.finetune import Finetune
from minichat.train.trainer import train
from tests.tiny import noise_picture
from tests.training import checkpoints, config_of, losses, make_desk, run, same, steps_of, write_tar


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_desk(tmp_path_factory.mktemp("desk"))
    for shard in range(2):
        write_tar(folder / f"web-{shard}.tar", range(10 * shard, 10 * shard + 10), broken=[3], wordless=[5])
    write_tar(folder / "other-0.tar", range(100, 107))
    return folder


def stream_of(desk: Path, *more: str) -> list[str]:
    sources = f"[{{source: '{desk}/web-{{0..1}}.tar', ratio: 3}}, {{source: {desk}/other-0.tar}}]"
    return [f"data.train={sources}", "data.streaming=true", "data.template=plain", "data.max_reply_length=8",
            "run.epochs=null", "run.max_steps=12", *more]  # fmt: skip


def data_of(desk: Path, *settings: str, rank: int = 0, count: int = 1) -> tuple[Finetune, Data]:
    config = config_of(desk, *settings)
    stage = Finetune(config, torch.device("cpu"))
    together = ProcessGroup(0, 1)
    together.rank, together.count = rank, count
    together.from_all = lambda value: [value]  # type: ignore[method-assign]
    return stage, read_data(config, stage, together, lambda text: None)


# --- lists


@pytest.mark.parametrize(
    ("batch_size", "at_once", "processes", "expected"),
    [(12, None, 1, (1, 12)), (12, None, 2, (1, 6)), (12, 4, 1, (3, 4)), (12, 4, 2, (2, 4)), (12, 5, 2, (2, 5)),
     (12, 100, 1, (1, 12)), (5, None, 2, (1, 3)), (3, None, 4, (1, 1))],
)  # fmt: skip
def test_a_share_is_taken_in_parts(
    batch_size: int, at_once: int | None, processes: int, expected: tuple[int, int], desk: Path
) -> None:
    settings = [f"run.batch_size={batch_size}", f"run.micro_batch_size={'null' if at_once is None else at_once}"]
    assert division(config_of(desk, *settings), processes) == expected


@pytest.mark.parametrize("length", [["run.epochs=3"], ["run.epochs=null", "run.max_steps=13"]])
def test_each_row_comes_once_in_an_epoch(length: list[str], desk: Path) -> None:
    _, data = data_of(desk, "run.batch_size=5", *length)
    assert (data.of_an_epoch, data.loader.steps) == (4, 12 if "epochs=3" in length[0] else 13)
    for epoch in range(3):
        seen = [place for step in range(4) for part in data.loader.where(4 * epoch + step) for place in part]
        assert len(set(seen)) == len(seen) == 18
    first, second = ([data.loader.where(4 * epoch + step) for step in range(4)] for epoch in range(2))
    assert first != second


def supervised(batches: list[Any]) -> int:
    """The sum of the ids that are learned."""
    return sum(int(batch["targets"][batch["targets"] != IGNORED].sum()) for batch in batches)


def test_processes_and_parts_divide_the_same_batches(desk: Path) -> None:
    _, alone = data_of(desk, "run.batch_size=6")
    shared = [data_of(desk, "run.batch_size=6", "run.micro_batch_size=2", rank=rank, count=2)[1] for rank in range(2)]
    for step in range(alone.loader.steps):
        places = [place for data in shared for part in data.loader.where(step) for place in part]
        assert sorted(places) == sorted(alone.loader.where(step)[0])
    ids = [supervised(batches) for batches in alone.loader.load()]
    ours = [[supervised(batches) for batches in data.loader.load()] for data in shared]
    assert ids == [sum(some) for some in zip(*ours, strict=True)]


def test_instructions_are_drawn_anew_in_each_epoch(desk: Path, tmp_path: Path) -> None:
    noise_picture(1).save(tmp_path / "a.png")
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(f"a.png,{n} stars\n" for n in range(12)))
    (tmp_path / "asked.txt").write_text("What?\nWhich?\nHow many?\nAnd so?\n")
    source = f"{{source: {tmp_path}/pairs.csv, options: {{instructions: {tmp_path}/asked.txt}}}}"
    _, data = data_of(desk, f"data.train={source}", "run.epochs=3")
    ids = [[row.ids.tolist() for row in data.loader.epoch(number).rows] for number in (0, 1, 0)]
    assert ids[0] != ids[1]
    assert ids[0] == ids[2]
    _, data = data_of(desk)
    assert data.loader.epoch(0).rows is data.loader.epoch(1).rows


def test_the_facts_tell_another_data_set(desk: Path, tmp_path: Path) -> None:
    facts = [data_of(desk)[1].loader.facts() for _ in range(2)]
    assert facts[0] == facts[1]
    assert facts[0]["samples"] == 18
    assert facts[0]["supervised_tokens"] < facts[0]["tokens"]
    for old, new in (("yellow", "orange"), ("Which", "What"), ("pictures/2-", "./pictures/2-")):
        talks = (desk / "talks.jsonl").read_text()
        changed = desk / "changed.jsonl"
        changed.write_text(talks.replace(old, new))
        assert (data_of(desk, f"data.train={changed}")[1].loader.facts() != facts[0]) == (old in talks)


def test_the_cut_samples_are_counted(desk: Path) -> None:
    whole, cut = (data_of(desk, *more)[1].loader.facts() for more in ([], ["data.max_reply_length=4"]))
    assert whole["samples_cut"] == 0
    assert cut["samples_cut"] == 18
    assert cut["supervised_tokens"] == 4 * 18


def test_the_template_it_is_trained_with(desk: Path) -> None:
    """Equal to what a processor of that template spells; the model's own stays for chat."""
    stage, data = data_of(desk, "data.template=vicuna-v1.1")
    assert stage.bot.processor.template == "vicuna-v0"
    (example,) = [e for e in formats.read(desk / "talks.jsonl") if str(e.where).endswith(":1")]
    other = stage.bot.processor.from_tokenizer_model(
        stage.bot.processor.content_tokenizer.serialized,
        image_size=56,
        template="vicuna-v1.1",
        num_image_tokens=4,
        image_token_id=stage.bot.processor.image_token_id,
    )
    ids = other.render(example.conversation()).ids
    assert any(row.ids.tolist() == ids for row in data.loader.epoch(0).rows)


def test_the_largest_batch_is_known(desk: Path) -> None:
    _, data = data_of(desk, "run.batch_size=5")
    sizes = [batches[0]["input_ids"].numel() for batches in data.loader.load()]
    assert sizes[data.loader.heaviest(0)] == max(sizes[: data.of_an_epoch])


# --- what carries them


@pytest.mark.parametrize("stream", [False, True])
def test_batches_are_pinned_where_that_is_asked_for_alone(
    stream: bool, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a CPU, even where there is a GPU; for a GPU, a stream's like the others."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader = data_of(desk, *(stream_of(desk) if stream else []))[1].loader
    (batch,) = next(loader.load())
    assert not pinned
    (batch,) = next(loader.load(pinned=True))
    assert {id(tensor) for tensor in batch.values()} <= {id(tensor) for tensor in pinned}


# --- streams


def read_stream(desk: Path, rank: int = 0, count: int = 1, workers: int = 0, start: int = 0, **more: Any) -> list[Any]:
    settings = [f"{name.replace('_', '.', 1)}={value}" for name, value in more.items()]
    _, data = data_of(desk, *stream_of(desk, *settings), rank=rank, count=count)
    return list(data.loader.load(start, workers))


def tokens(steps: list[Any]) -> list[list[list[int]]]:
    """Of each step, its rows' supervised ids, sorted; whatever the parts."""
    found = []
    for batches in steps:
        rows = []
        for batch in batches:
            place = batch["positions"] // batch["input_ids"].shape[1]
            place[batch["targets"] == IGNORED] = -1  # filled up
            rows += [batch["targets"][place == n].tolist() for n in range(len(batch["input_ids"]))]
        found.append(sorted(rows))
    return found


def test_a_stream_is_the_same_for_any_number_of_processes_parts_and_workers(desk: Path) -> None:
    whole = tokens(read_stream(desk))
    assert tokens(read_stream(desk, workers=2)) == whole
    assert tokens(read_stream(desk, run_micro_batch_size=1)) == whole
    assert tokens(read_stream(desk, start=7)) == whole[7:]
    assert tokens(read_stream(desk, start=7, workers=2)) == whole[7:]
    shared = [tokens(read_stream(desk, rank=rank, count=2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*shared, strict=True)] == whole


def test_a_stream_mixes_by_ratio_and_leaves_out_what_is_wrong(desk: Path) -> None:
    _, data = data_of(desk, *stream_of(desk, "run.max_steps=200"))
    places = Counter(place.split("/")[-1][:3] for step in range(200) for place in data.loader.where(step)[0])
    assert 2.3 < places["web"] / places["oth"] < 3.9
    sizes = Counter(sum(len(b["input_ids"]) for b in batches) for batches in data.loader.load())
    assert sum(sizes.values()) == 200
    assert set(sizes) > {3, 4}  # a picture that is none is left out, and its batch is smaller


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_stream_leaves_out_is_named(workers: int, desk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = config_of(desk, *stream_of(desk, f"out={tmp_path}", f"data.num_workers={workers}", "report.log_every=6"))
    train(config, say=said.append)
    found = [line for line in said if line.startswith("Left out: ")]
    listed = (tmp_path / "left_out.txt").read_text().splitlines()
    assert 1 <= len(found) <= 2  # at each line of progress
    assert {line.split(": ")[1] for line in listed} == {f"{desk}/web-0.tar:4", f"{desk}/web-0.tar:6"}


@pytest.mark.parametrize(("log_every", "save_every"), [(5, 4), (100, 6)])
def test_what_a_stream_leaves_out_is_named_once_for_each_step_that_counts(
    log_every: int, save_every: int, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that breaks off: told of a step that will be done again; with a checkpoint, but no line since."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    settings = stream_of(desk, f"report.log_every={log_every}", f"run.save_every={save_every}")
    run(desk, *settings, f"out={whole}")
    named = (whole / "left_out.txt").read_text()
    assert set(re.findall(r"step (\d+)", named)) == {"5", "10", "11"}
    real, calls = Finetune.loss, []

    def breaks_off(self: Finetune, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2 + 7:  # after the trial's two
            raise ZeroDivisionError
        return real(self, batch)

    monkeypatch.setattr(Finetune, "loss", breaks_off)
    with pytest.raises(ZeroDivisionError):
        run(desk, *settings, f"out={out}")
    monkeypatch.setattr(Finetune, "loss", real)
    run(desk, *settings, f"out={out}")
    assert (out / "left_out.txt").read_text() == named


def test_a_loss_that_is_no_number_is_found_in_a_streams_parts(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Finetune.loss, []

    def broken(self: Finetune, batch: Any) -> torch.Tensor:
        calls.append(1)
        return real(self, batch) * (float("nan") if len(calls) == 2 + 2 else 1)  # the first step's second part

    monkeypatch.setattr(Finetune, "loss", broken)
    more = ["run.micro_batch_size=2", f"out={tmp_path / 'run'}"]
    with pytest.raises(ModelError, match=r"The loss is nan at step 1, from .*\.tar:"):
        run(desk, *stream_of(desk, *more))


def test_a_step_of_which_nothing_can_be_read_is_named(desk: Path, tmp_path: Path) -> None:
    """Also the first, which is tried before the run."""
    for name, broken, step in (("first", {0, 1}, 1), ("second", {2, 3}, 2)):
        write_tar(tmp_path / f"{name}.tar", range(6), broken)
        source = f"{{source: {tmp_path / name}.tar, options: {{shuffle: 1}}}}"
        more = [f"data.train={source}", "run.batch_size=2", f"out={tmp_path / name}"]
        places = ", ".join(f"{tmp_path}/{name}.tar:{2 * step - 1 + row}" for row in range(2))
        with pytest.raises(DataError, match=f"Nothing can be learned at step {step}: {places}"):
            run(desk, *stream_of(desk), *more)


def test_a_run_on_a_stream_resumes_to_the_bit(desk: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(desk, *stream_of(desk), f"out={whole}")
    outcome = run(desk, *stream_of(desk), f"out={out}", "data.num_workers=2", stop=5)
    assert (outcome.step, outcome.signal) == (5, signal.SIGTERM)
    run(desk, *stream_of(desk), f"out={out}", "data.num_workers=2")
    assert losses(out) == losses(whole)
    assert same(checkpoints(out)[12], checkpoints(whole)[12])
    assert {line["items"] for line in steps_of(out)} <= set(range(1, 33))
    assert json.loads((out / "minichat.json").read_text())["training"]["data"]["samples"] is None


def test_what_a_stream_cannot_is_said(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"run\.batch_size is 4, which 3 processes cannot share evenly"):
        data_of(desk, *stream_of(desk), count=3)
    with pytest.raises(SettingsError, match=r"a stream has no option 'text'"):
        source = f"{{source: {desk}/other-0.tar, options: {{text: x}}}}"
        data_of(desk, *stream_of(desk), f"data.train={source}")


# --- kinds of records


def write_table(file: Path, numbers: range) -> None:
    """A Parquet file of pictures, all of one name, and their captions."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for number in numbers:
        written = io.BytesIO()
        noise_picture(number).save(written, "PNG")
        rows.append({"image": {"bytes": written.getvalue(), "path": "x.png"}, "caption": [f"{number} stars", "A star"]})
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=3)


def test_tables_are_streamed(desk: Path, tmp_path: Path) -> None:
    for shard in range(2):
        write_table(tmp_path / f"train-{shard:05d}-of-00002.parquet", range(10 * shard, 10 * shard + 10))
    source = f"data.train={{source: {tmp_path}, options: {{shuffle: 5}}}}"
    settings = stream_of(desk, source, "data.several_captions=random")
    whole = tokens(list(data_of(desk, *settings)[1].loader.load()))
    assert all(len(step) == 4 for step in whole)
    assert tokens(list(data_of(desk, *settings)[1].loader.load(0, 2))) == whole
    assert tokens(list(data_of(desk, *settings)[1].loader.load(7))) == whole[7:]
    shared = [tokens(list(data_of(desk, *settings, rank=rank, count=2)[1].loader.load())) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*shared, strict=True)] == whole
    for workers in (0, 2):  # a worker's error is a sentence, too
        with pytest.raises(DataError, match=r"has 2 texts, and a stream takes one") as raised:
            list(data_of(desk, *stream_of(desk, source))[1].loader.load(0, workers))
        assert "Traceback" not in str(raised.value)


def test_lines_are_streamed(desk: Path) -> None:
    _, data = data_of(desk, *stream_of(desk, f"data.train={{source: {desk}/talks.jsonl}}"))
    steps = list(data.loader.load())
    assert len(steps) == 12
    assert all(len(batch["input_ids"]) == 4 for batches in steps for batch in batches)


def test_one_of_several_captions_is_drawn_in_each_epoch(desk: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet", range(8))
    samples = {}
    for several in ("each", "first", "random"):
        settings = [f"data.train={tmp_path}/x.parquet", f"data.several_captions={several}", "run.epochs=3"]
        _, data = data_of(desk, *settings)
        samples[several] = [[row.ids.tolist() for row in data.loader.epoch(number).rows] for number in (0, 1, 0)]
    assert [len(epoch) for epoch in (samples[several][0] for several in samples)] == [16, 8, 8]
    assert samples["first"][0] == samples["first"][1] == samples["each"][0][::2]
    first, second, again = samples["random"]
    assert first == again != second
    assert all(one in samples["each"][0] for one in first)


def test_keys_that_nothing_reads_are_refused_unless_they_are_ignored(desk: Path, tmp_path: Path) -> None:
    noise_picture(1).save(tmp_path / "a.png")
    (tmp_path / "x.csv").write_text("image,caption,hint\na.png,A star.,Look.\n")
    write_table(tmp_path / "x.parquet", range(1))
    with pytest.raises(DataError, match=r"x\.csv:2: nothing reads the key 'hint'"):
        data_of(desk, f"data.train={tmp_path}/x.csv")
    _, data = data_of(desk, f"data.train={tmp_path}/x.csv", "data.unknown_keys=ignore")
    assert data.loader.facts()["samples"] == 1
    with pytest.raises(DataError, match="nothing reads the key 'hint'"):
        list(data_of(desk, *stream_of(desk, f"data.train={{source: {tmp_path}/x.csv}}"))[1].loader.load())


def test_rows_that_hold_an_error_are_left_out_and_said(desk: Path, tmp_path: Path) -> None:
    noise_picture(1).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "caption": "A star."},
        *({"image": "b.png", "error": "It is damaged."} for _ in range(3)),
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    config = config_of(desk, f"data.train={tmp_path}/x.jsonl")
    data = read_data(config, Finetune(config, torch.device("cpu")), ProcessGroup(0, 1), said.append)
    assert data.loader.facts()["samples"] == 1
    (line,) = said
    assert re.fullmatch(r"Left out: .*x\.jsonl:2: the row holds an error .*: 'It is damaged\.'\. \(and 2 more\)", line)
