"""The configuration: typed, checked, and read back as it was written; and every YAML that is shipped runs."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minichat.errors import SettingsError
from minichat.train.config import (
    STAGES,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ReportConfig,
    RunConfig,
    Source,
    difference,
    read_config,
)
from minichat.train.optimizer import lr_at, lr_scales, make_optimizer, set_lr
from minichat.train.yaml_config import build, override, plain, read_yaml, write_yaml

ROOT = Path(__file__).resolve().parent.parent


def read(tmp_path: Path, text: str, *overrides: str) -> Config:
    (tmp_path / "train.yaml").write_text(text)
    return read_config(tmp_path / "train.yaml", overrides)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
SMALL = st.floats(0, 1, exclude_max=True)
COUNT = st.integers(1, 10**6)
SOURCES = st.builds(
    Source,
    source=TEXT,
    format=st.none() | TEXT,
    ratio=st.floats(1e-6, 1e6),
    options=st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=2),
)
CONFIGS = st.builds(
    Config,
    stage=st.sampled_from(list(STAGES)),
    out=TEXT,
    seed=st.integers(0, 2**31 - 1),
    trainable=st.lists(st.sampled_from(["projection", "bridge.query_tokens"])).map(tuple),
    model=st.builds(
        ModelConfig, name=TEXT, dtype=st.sampled_from(["auto", "bfloat16"]), gradient_checkpointing=st.booleans()
    ),
    data=st.builds(DataConfig, train=st.lists(SOURCES, min_size=1, max_size=3).map(tuple), template=st.none() | TEXT),
    optimizer=st.builds(
        OptimizerConfig, lr=st.floats(0.5, 1e3), min_lr=st.floats(0, 0.5), beta1=SMALL, max_grad_norm=st.none()
    ),
    run=st.builds(RunConfig, max_steps=COUNT, batch_size=COUNT, micro_batch_size=st.none() | COUNT),
    report=st.builds(ReportConfig, log_every=COUNT, wandb=st.booleans(), project=TEXT),
)


@given(CONFIGS)
def test_it_reads_back_as_it_was_written(config: Config) -> None:
    text = write_yaml(config)
    assert build(Config, read_yaml(text, "")) == config
    assert build(Config, yaml.safe_load(text)) == config  # for other programs, too
    assert difference(plain(config), plain(build(Config, read_yaml(text, "")))) is None


def test_what_is_not_given_is_the_default(tmp_path: Path) -> None:
    config = read(tmp_path, "data: {train: talks.jsonl}")
    assert config == Config(data=DataConfig(train=(Source("talks.jsonl"),)))


def test_overrides_come_after_the_file(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "data: {train: [a, {source: b, ratio: 2}]}\noptimizer: {lr: 1e-3}",
        "optimizer.lr=2e-4",
        "data.train.1.ratio=3",
        "data.validation=[c, d]",
        "trainable=[bridge]",
        "run.epochs=null",
        "run.max_steps=7",
        "model.name='7'",
    )
    assert config.optimizer.lr == 2e-4
    assert [source.ratio for source in config.data.train] == [1.0, 3.0]
    assert [source.source for source in config.data.validation] == ["c", "d"]
    assert (config.trainable, config.run.max_steps, config.model.name) == (("bridge",), 7, "7")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("optimizer.mn_lr=1", r"optimizer\.mn_lr is not known; did you mean optimizer\.min_lr\?"),
        ("modle.name=x", r"modle is not known; did you mean model\?"),
        ("data.train.0.souce=x", r"data\.train\.0\.souce is not known; did you mean data\.train\.0\.source\?"),
        ("qqqqqq=1", r"qqqqqq is not known; known here are stage, out, seed"),
        ("optimizer.lr=fast", r"optimizer\.lr is 'fast'; it must be a number"),
        ("optimizer.lr=true", r"optimizer\.lr is True; it must be a number"),
        ("run.batch_size=1.5", r"run\.batch_size is 1\.5; it must be a whole number"),
        ("run.batch_size=true", r"run\.batch_size is True; it must be a whole number"),
        ("run.batch_size=yes", r"run\.batch_size is 'yes'; it must be a whole number"),
        ("run.batch_size=1:30", r"run\.batch_size is '1:30'; it must be a whole number"),
        ("run.batch_size=1,000", r"run\.batch_size is '1,000'; it must be a whole number"),
        ("optimizer.lr=1:30.5", r"optimizer\.lr is '1:30\.5'; it must be a number"),
        ("out=08", r"out is 8; it must be a text, in quotation marks"),
        ("report.wandb=y", r"report\.wandb is 'y'; it must be true or false"),
        ("report.wandb=1", r"report\.wandb is 1; it must be true or false"),
        ("out=[a]", r"out is \['a'\]; it must be a text"),
        ("model=x", r"model is 'x'; it must hold keys"),
        ("model.device=gpu", r"model\.device is 'gpu'; it must be one of auto, cpu, cuda, mps"),
        ("data.train=null", r"data\.train is \[\]; it must be a list of data sets"),
        ("data.train=[{format: llava}]", r"data\.train\.0\.source is missing"),
        ("data.train.3.source=x", r"data\.train is a list of 1; '3' is not in it"),
        ("data.train.0.source.x=1", r"data\.train\.0\.source is 'talks\.jsonl', which holds no keys"),
        ("optimizer", r"'optimizer' is no setting: write key\.sub=value"),
        ("a..b=1", r"is no setting"),
        ("optimizer.lr=[1", r"is no YAML"),
        ("optimizer.lr=0", r"optimizer\.lr is 0\.0; it must be above 0"),
        ("optimizer.lr=.nan", r"optimizer\.lr is nan; it must be above 0"),
        ("optimizer.lr=.inf", r"optimizer\.lr is inf"),
        ("optimizer.lr_by_part={bridge: fast}", r"optimizer\.lr_by_part\.bridge is 'fast'; it must be a number"),
        ("optimizer.lr_by_part.bridge=0", r"optimizer\.lr_by_part\.bridge is 0\.0; it must be above 0"),
        ("optimizer.lr_by_part=[1]", r"optimizer\.lr_by_part is \[1\]; it must hold keys"),
        ("optimizer.min_lr=1", r"optimizer\.min_lr is 1\.0; it must be from 0 to optimizer\.lr"),
        ("optimizer.beta2=1", r"optimizer\.beta2 is 1\.0; it must be from 0 to below 1"),
        ("optimizer.max_grad_norm=0", r"optimizer\.max_grad_norm is 0\.0; it must be above 0, or none"),
        ("optimizer.warmup_steps=-1", r"optimizer\.warmup_steps is -1"),
        ("run.batch_size=0", r"run\.batch_size is 0; it must be at least 1"),
        ("run.max_steps=5", r"run\.epochs is given, and so is run\.max_steps; give one"),
        ("run.epochs=null", r"run\.epochs is null, and so is run\.max_steps; give one"),
        ("run.patience=2", r"run\.patience waits for a better validation loss, but data\.validation is empty"),
        ("seed=-1", r"seed is -1"),
        ("data.num_workers=1000", r"data\.num_workers is 1000"),
        ("data.max_length=1", r"data\.max_length is 1"),
        ("data.streaming=true", r"data\.streaming has no end, so an epoch has none: give run\.max_steps"),
        ("model.vision_drop_path_rate=1", r"model\.vision_drop_path_rate is 1\.0; it must be from 0 to below 1"),
        ("model.vision_drop_path_rate=0.1", r"model\.vision_drop_path_rate is for a vision_model that trains"),
        ("model.vision_gradient_checkpointing=true", r"model\.vision_gradient_checkpointing is for a vision_model"),
        ("report.samples=-1", r"report\.samples is -1"),
        ("report.max_new_tokens=0", r"report\.max_new_tokens is 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(assignment: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        read(tmp_path, "data: {train: [{source: talks.jsonl}]}\nrun: {epochs: 1}", assignment)


@pytest.mark.parametrize(
    ("assignment", "meant"),
    [
        ("run.batch_size=010", 10), ("run.batch_size=08", 8), ("run.batch_size=1_000", 1000),
        ("run.batch_size=1e3", 1000),
        ("run.batch_size=0x10", 16), ("run.batch_size=0o10", 8), ("run.batch_size=+5", 5), ("optimizer.lr=010", 10.0),
        ("optimizer.lr=1e-4", 1e-4), ("optimizer.lr=1E-4", 1e-4), ("optimizer.lr=.5e-3", 5e-4),
        ("optimizer.lr=1.", 1.0),
        ("report.wandb=yes", True), ("report.wandb=on", True), ("report.wandb=True", True), ("report.wandb=No", False),
        ("report.wandb=OFF", False), ("out=no", "no"), ("out=on", "on"), ("out=2026-01-01", "2026-01-01"),
        ("out=1:30", "1:30"), ("out==", "="), ("model.name=1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_a_value_is_what_people_mean_by_it(assignment: str, meant: object, tmp_path: Path) -> None:
    """YAML 1.1 reads 010 as eight, 1:30 as ninety, on and no as true and false, and a date as none of these."""
    section, _, name = assignment.partition("=")[0].rpartition(".")
    config = read(tmp_path, "data: {train: talks.jsonl}\nrun: {epochs: 1}\noptimizer: {min_lr: 0}", assignment)
    held = getattr(getattr(config, section) if section else config, name)
    assert (held, type(held)) == (meant, type(meant))


@pytest.mark.parametrize("text", ["010", "1e3", "0o17", "1:30", "yes", "2026-01-01", ".5e3", "=", "~", "1_0"])
def test_a_text_that_looks_like_another_value_is_read_back(text: str) -> None:
    written = write_yaml({"name": text})
    assert read_yaml(written, "f") == {"name": text} == yaml.safe_load(written)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.quantize=4bit", "trainable=[language_model.lm_head]"], "trainable names the language_model"),
        (
            ["data.feature_cache=kept", "trainable=[projection, bridge]"],
            "data.feature_cache keeps what the frozen parts see, but",
        ),
        (
            ["data.feature_cache=kept", "data.streaming=true", "run.epochs=null", "run.max_steps=9"],
            "data.feature_cache is made of all pictures before the run begins, and data.streaming",
        ),
    ],
)
def test_conflicts_name_both(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        read(tmp_path, "data: {train: talks.jsonl}", *overrides)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2", r"train\.yaml:2 is no YAML \(the key 'seed' is there twice\)"),
        ("a: [1", r"train\.yaml:\d+ is no YAML"),
        ("just words", r"train\.yaml is no configuration"),
        ("- a list", r"train\.yaml is no configuration"),
        ("!!python/object/apply:os.system ['true']", r"train\.yaml:1 is no YAML"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"There is no configuration 'nowhere\.yaml'"):
        read_config("nowhere.yaml")
    (tmp_path / "train.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"'train\.yaml' cannot be read as text"):
        read_config(tmp_path / "train.yaml")


@given(st.dictionaries(TEXT, st.integers()), st.text())
def test_an_override_either_works_or_says_why(content: dict[str, Any], assignment: str) -> None:
    try:
        override(dict(content), [assignment], {})
    except SettingsError:
        pass


def test_every_field_says_what_it_means() -> None:
    """A line of text below each field, as the sections are documented."""
    source = (ROOT / "minichat" / "train" / "config.py").read_text()
    for section in (Config, ModelConfig, DataConfig, OptimizerConfig, RunConfig, ReportConfig, Source):
        body = source.split(f"class {section.__name__}(Checked):")[1].split("\n@dataclass")[0]
        for field in dataclasses.fields(section):
            if (section, field.name) not in {
                (Config, name) for name in ("model", "data", "optimizer", "run", "report")
            }:
                assert re.search(rf'\n    {field.name}: .*\n    """[A-Z].*[.]"""\n', body), field.name


# --- all that is wrong, at once

WRONG = """# a comment
stage: dance
data:
  train:
    - source: a
      fromat: llava
    - {ratio: -1, source: b}
    - ratio: 2
  workers: 1000
optimizer: {lr: fast, min_lr: -1}
batch_size: 4
run:
  max_steps: [5]
  save_every: 0
lora: {rank: 0}
"""
TOLD = [
    "train.yaml:6: data.train.0.fromat is not known; did you mean data.train.0.format?",
    "train.yaml:7: data.train.1.ratio is -1.0; it must be above 0.",
    "train.yaml:8: data.train.2.source is missing: give it.",
    "train.yaml:9: data.num_workers is 1000; it must be from 0 to 256.",
    "train.yaml:10: optimizer.lr is 'fast'; it must be a number.",
    "train.yaml:11: batch_size is not known; did you mean run.batch_size?",
    "train.yaml:13: run.max_steps is [5]; it must be a whole number.",
    "train.yaml:14: run.save_every is 0; it must be at least 1.",
    "command line: lora.rank is -2; it must be at least 1.",
    "command line: report.tensorboard is 1; it must be true or false.",
    "train.yaml:2: stage is 'dance'; it must be one of finetune, qformer, vision, language, word_alignment.",
    "command line: seed is -1; it must be from 0 to 2147483647.",
]


def test_all_that_is_wrong_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    """What only follows from another fault, such as `min_lr` above an `lr` that is no number, is not."""
    with pytest.raises(SettingsError) as raised:
        read(tmp_path, WRONG, "seed=-1", "report.tensorboard=1", "lora.rank=-2")
    heading, *told = str(raised.value).split("\n  ")
    assert heading == "12 settings cannot be as they are:"
    assert sorted(told) == sorted(TOLD)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data: {train: x}\nrun:\n  epochs: 0", "train.yaml:3: run.epochs"),
        ("data:\n  train: {source: x,\n    ratio: 0}", "train.yaml:3: data.train.0.ratio"),
        ("seed: 1", "train.yaml: data.train is []"),
        ("seed: 1\ndata: {}", "train.yaml:2: data.train is []"),
        ("data: {train: x}\nmodel:\n  1: 2", "train.yaml:3: model.1 is not known"),
        ("x: &o {lr: 0}\noptimizer: *o", "train.yaml:1: optimizer.lr is 0"),
        ("data: {train: x}\noptimizer:\n  <<: {lr: 0}", "train.yaml:3: optimizer.lr is 0"),
        ("data: {train: x}\noptimizer: {min_lr: 0,\n  rate: -1}", "train.yaml:3: optimizer.lr is -1"),
    ],
)
def test_a_fault_is_told_with_its_line(text: str, place: str, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning) if "rate:" in text else nullcontext(), pytest.raises(SettingsError) as raised:
        read(tmp_path, text)
    assert place in str(raised.value)


# --- names from before the first release

OLD = """
stage: replies
trainable: [bridge, projection]
lora: {rank: 4, targets: q_proj}
model: {name: there, checkpoint_llm: true, vision_checkpoint: false, vision_drop_path: 0}
data:
  train: [{source: a, form: drawn, ratio: 2}, b]
  validation: {source: c, form: llava}
  stream: true
  max_tokens: 100
  max_reply_tokens: 50
  workers: 2
optimizer: {matrices: muon, rate: 1e-3, floor: 1e-4, warmup_rate: 1e-5, clip: null}
run: {steps: 9, device_batch_size: 2}
report: {pictures: 3}
"""
NEW = """
stage: finetune
trainable: [bridge, projection]
lora: {rank: 4, target_modules: q_proj}
model: {name: there, gradient_checkpointing: true, vision_gradient_checkpointing: false, vision_drop_path_rate: 0}
data:
  train: [{source: a, format: synthetic, ratio: 2}, b]
  validation: {source: c, format: llava}
  streaming: true
  max_length: 100
  max_reply_length: 50
  num_workers: 2
optimizer: {name: muon, lr: 1e-3, min_lr: 1e-4, warmup_lr: 1e-5, max_grad_norm: null}
run: {max_steps: 9, micro_batch_size: 2}
report: {samples: 3}
"""
OLD_PARTS = {
    "stage: pretraining\npretraining: {new: {vision: v, bert: b, queries: 8, contrast_width: 9}}": (
        "stage: qformer\nqformer: {new: {vision: v, bert: b, num_queries: 8, embed_dim: 9}}"
    ),
    "stage: vision\nvision: {contrast: 0.2}": "stage: vision\nvision: {contrastive_weight: 0.2}",
    "stage: language\nlanguage: {start: x, vocabulary: 999, context: 99, feed_forward: 9}": (
        "stage: language\nlanguage: {initialize_from: x, vocab_size: 999, context_length: 99, intermediate_size: 9}"
    ),
    "stage: naming": "stage: word_alignment",
    "data: {train: x, features: k}": "data: {train: x, feature_cache: k}",
}


@pytest.mark.parametrize(("old", "new"), [(OLD, NEW), *OLD_PARTS.items()], ids=lambda text: text.split("\n", 2)[0])
def test_old_names_are_read_and_the_new_ones_told(old: str, new: str, tmp_path: Path) -> None:
    train = () if "train:" in old else ("data.train=x",)
    said: list[str] = []
    (tmp_path / "old.yaml").write_text(old)
    (tmp_path / "new.yaml").write_text(new)
    assert read_config(tmp_path / "old.yaml", train, say=said.append) == read_config(
        tmp_path / "new.yaml", train, say=said.append
    )
    assert len(said) == 1  # of the old file alone


def test_each_old_name_is_told_with_the_new_one(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "train.yaml").write_text("data: {train: x, workers: 2}\nstage: replies")
    read_config(tmp_path / "train.yaml", ["optimizer.rate=1"], say=said.append)
    for words in ("data.workers is now data.num_workers", "stage: replies is now stage: finetune"):
        assert words in said[0]
    assert "optimizer.rate is now optimizer.lr" in said[0]
    with pytest.warns(FutureWarning, match="stage: replies is now stage: finetune"):
        read_config(tmp_path / "train.yaml")


def test_an_old_override_comes_after_a_new_key(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("data: {train: x}\noptimizer: {lr: 1e-3, min_lr: 0}")
    config = read_config(
        tmp_path / "train.yaml", ["optimizer.rate=2", "optimizer={floor: 1, rate: 3}"], say=lambda text: None
    )
    assert (config.optimizer.lr, config.optimizer.min_lr) == (3, 1)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("data: {train: x}\noptimizer: {rate: 1, lr: 1}", []),
        ("data: {train: x}", ["optimizer.rate=1", "optimizer.lr=1"]),
        ("data: {train: x}", ["optimizer={lr: 1, rate: 1}"]),
    ],
)
def test_both_names_of_a_setting_are_refused(text: str, overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"optimizer\.rate .*optimizer\.lr.*both are given: drop"):
        read(tmp_path, text, *overrides)


# --- the learning rates of parts

NAMES = ("bridge.query_tokens", "bridge.qformer.layer.0.weight", "projection.weight", "projection.bias")


@pytest.mark.parametrize(
    ("parts", "scales"),
    [
        ({}, (1, 1, 1, 1)),
        ({"projection": 0.5}, (1, 1, 0.5, 0.5)),
        ({"bridge.qformer": 2.0, "bridge": 0.25}, (0.25, 2, 1, 1)),
        ({"*.bias": 3.0, "*": 0.5}, (0.5, 0.5, 0.5, 3)),
    ],
)
def test_the_first_pattern_that_matches_counts(parts: dict[str, float], scales: tuple[float, ...]) -> None:
    config = OptimizerConfig(lr=1.0, lr_by_part=parts)
    assert tuple(lr_scales(NAMES, config).values()) == scales


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"brigde": 0.5}, "'brigde' is of no use, since nothing that trains has that name"),
        ({"*": 1.0, "bridge": 0.5}, "'bridge' is of no use, since what it matches is matched by a pattern before it"),
        ({"project": 1.0}, "'project' is of no use"),
    ],
)
def test_a_pattern_for_nothing_is_refused(parts: dict[str, float], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        lr_scales(NAMES, OptimizerConfig(lr=1.0, lr_by_part=parts))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_moves_each_part_by_its_own_rate(name: Any) -> None:
    """A first step moves each weight by its rate, whatever its gradient: of AdamW, and of Muon times a known factor."""
    names = ("layers.0.a", "layers.0.b", "c.weight", "d.bias")
    shapes = ((4, 4), (4, 4), (3,), (2,))

    def moved(parts: dict[str, float]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        weights = {n: torch.nn.Parameter(torch.zeros(shape)) for n, shape in zip(names, shapes, strict=True)}
        config = OptimizerConfig(name=name, lr=0.5, lr_by_part=parts, weight_decay=0)
        optimizer = make_optimizer(weights, config)
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        set_lr(optimizer, 0.1)
        optimizer.step()
        return [weight.detach() for weight in weights.values()]

    plain, parted = moved({}), moved({"layers.0.b": 0.25, "d": 1.0})
    for before, after, factor in zip(plain, parted, (1, 0.5, 1, 2), strict=True):
        assert before.abs().max() > 0
        torch.testing.assert_close(after, before * factor)


# --- the schedule

RATES = OptimizerConfig(lr=3e-5, min_lr=1e-5, warmup_steps=200, warmup_lr=1e-6)


def test_the_schedule_is_minigpt4s() -> None:
    """Its second stage, at points worked out by hand: warm-up from step 0, and a cosine measured over all steps."""
    assert lr_at(0, 1000, RATES) == 1e-6
    assert lr_at(100, 1000, RATES) == pytest.approx(1e-6 + 29e-6 / 2)
    assert lr_at(200, 1000, RATES) == pytest.approx(1e-5 + 1e-5 * (1 + math.cos(math.pi / 5)))
    assert lr_at(500, 1000, RATES) == pytest.approx(2e-5)
    assert lr_at(1000, 1000, RATES) == pytest.approx(1e-5)


@given(st.integers(1, 5000), st.integers(0, 6000))
def test_the_rate_is_within_its_bounds_and_falls_after_the_warm_up(steps: int, warmup: int) -> None:
    config = dataclasses.replace(RATES, warmup_steps=warmup)
    rates = [lr_at(step, steps, config) for step in range(0, steps, max(1, steps // 50))]
    assert all(1e-6 <= rate <= 3e-5 * (1 + 1e-12) for rate in rates)
    after = [rate for step, rate in zip(range(0, steps, max(1, steps // 50)), rates, strict=True) if step >= warmup]
    assert after == sorted(after, reverse=True)


# --- what is shipped

SHIPPED = sorted((ROOT / "train_configs").glob("**/*.yaml"))
PUBLISHED = {
    "minigpt4_vicuna_stage1": (1e-4, 8e-5, 5000, 256, 20_000, 32),
    "minigpt4_llama2_stage1": (1e-4, 8e-5, 5000, 256, 20_000, 32),
    "minigpt4_vicuna_stage2": (3e-5, 1e-5, 200, 12, 1000, 160),
    "minigpt4_llama2_stage2": (3e-5, 1e-5, 200, 12, 1000, 160),
}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_its_first_lines_are_the_command_that_runs_it(file: Path) -> None:
    commands = [line.removeprefix("# ") for line in file.read_text().split("\n#\n")[0].splitlines()]
    assert shlex.split(commands[-1])[-2:] == ["train", str(file.relative_to(ROOT))]
    assert all("minichat" in command for command in commands)


@pytest.mark.parametrize(
    ("name", "published"), [("blip2_stage1", (0, 1680, 250_000)), ("blip2_stage2", (5e-5, 1920, 80_000))]
)
def test_the_settings_are_the_papers(name: str, published: tuple[float, int, int]) -> None:
    config = read_config(ROOT / "train_configs" / f"{name}.yaml")
    rates = config.optimizer
    assert (rates.min_lr, config.run.batch_size, config.run.max_steps) == published
    assert (rates.lr, rates.warmup_steps, rates.weight_decay, rates.beta1, rates.beta2) == (
        1e-4,
        2000,
        0.05,
        0.9,
        0.98,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_settings_are_the_published_ones(name: str) -> None:
    config = read_config(ROOT / "train_configs" / f"{name}.yaml")
    rates, run = config.optimizer, config.run
    found = (rates.lr, rates.min_lr, rates.warmup_steps, run.batch_size, run.max_steps, config.data.max_reply_length)
    assert found == PUBLISHED[name]
    assert (rates.weight_decay, rates.warmup_lr, rates.beta1, rates.beta2, rates.max_grad_norm) == (
        0.05,
        1e-6,
        0.9,
        0.999,
        None,
    )
    assert config.trainable == ("projection",)
    templates = {"vicuna_stage2": "vicuna-v0-train", "llama2_stage2": "llama2-train"}
    assert config.data.template == templates.get(name.removeprefix("minigpt4_"), "plain")
    if name.endswith("stage1"):
        assert [source.ratio for source in config.data.train] == [115, 14]
