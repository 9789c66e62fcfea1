"""The configuration: typed, checked, and read back as it was written; and every YAML that is shipped runs."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minichat.errors import SettingsError
from minichat.train.checkpoint import rate_of
from minichat.train.config import (
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
    form=st.none() | TEXT,
    ratio=st.floats(1e-6, 1e6),
    options=st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=2),
)
CONFIGS = st.builds(
    Config,
    stage=TEXT,
    out=TEXT,
    seed=st.integers(0, 2**31 - 1),
    trainable=st.lists(st.sampled_from(["projection", "bridge.query_tokens"])).map(tuple),
    model=st.builds(ModelConfig, name=TEXT, dtype=st.sampled_from(["auto", "bfloat16"]), checkpoint_llm=st.booleans()),
    data=st.builds(DataConfig, train=st.lists(SOURCES, min_size=1, max_size=3).map(tuple), template=st.none() | TEXT),
    optimizer=st.builds(
        OptimizerConfig, rate=st.floats(0.5, 1e3), floor=st.floats(0, 0.5), beta1=SMALL, clip=st.none()
    ),
    run=st.builds(RunConfig, steps=COUNT, batch_size=COUNT, device_batch_size=st.none() | COUNT),
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
        "data: {train: [a, {source: b, ratio: 2}]}\noptimizer: {rate: 1e-3}",
        "optimizer.rate=2e-4",
        "data.train.1.ratio=3",
        "data.validation=[c, d]",
        "trainable=[bridge]",
        "run.epochs=null",
        "run.steps=7",
        "model.name='7'",
    )
    assert config.optimizer.rate == 2e-4
    assert [source.ratio for source in config.data.train] == [1.0, 3.0]
    assert [source.source for source in config.data.validation] == ["c", "d"]
    assert (config.trainable, config.run.steps, config.model.name) == (("bridge",), 7, "7")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("optimizer.rat=1", r"optimizer\.rat is not known; did you mean optimizer\.rate\?"),
        ("modle.name=x", r"modle is not known; did you mean model\?"),
        ("data.train.0.souce=x", r"data\.train\.0\.souce is not known; did you mean data\.train\.0\.source\?"),
        ("qqqqqq=1", r"qqqqqq is not known; known here are stage, out, seed"),
        ("optimizer.rate=fast", r"optimizer\.rate is 'fast'; it must be a number"),
        ("optimizer.rate=true", r"optimizer\.rate is True; it must be a number"),
        ("run.batch_size=1.5", r"run\.batch_size is 1\.5; it must be a whole number"),
        ("run.batch_size=yes", r"run\.batch_size is True; it must be a whole number"),
        ("report.wandb=1", r"report\.wandb is 1; it must be true or false"),
        ("out=[a]", r"out is \['a'\]; it must be a text"),
        ("model=x", r"model is 'x'; it must hold keys"),
        ("model.device=gpu", r"model\.device is 'gpu'; it must be one of auto, cpu, cuda, mps"),
        ("data.train=null", r"data\.train is \[\]; it must be a list of data sets"),
        ("data.train=[{form: llava}]", r"data\.train\.0\.source is missing"),
        ("data.train.3.source=x", r"data\.train is a list of 1; '3' is not in it"),
        ("data.train.0.source.x=1", r"data\.train\.0\.source is 'talks\.jsonl', which holds no keys"),
        ("optimizer", r"'optimizer' is no setting: write key\.sub=value"),
        ("a..b=1", r"is no setting"),
        ("optimizer.rate=[1", r"is no YAML"),
        ("optimizer.rate=0", r"optimizer\.rate is 0\.0; it must be above 0"),
        ("optimizer.rate=.nan", r"optimizer\.rate is nan; it must be above 0"),
        ("optimizer.rate=.inf", r"optimizer\.rate is inf"),
        ("optimizer.floor=1", r"optimizer\.floor is 1\.0; it must be from 0 to optimizer\.rate"),
        ("optimizer.beta2=1", r"optimizer\.beta2 is 1\.0; it must be from 0 to below 1"),
        ("optimizer.clip=0", r"optimizer\.clip is 0\.0; it must be above 0, or none"),
        ("optimizer.warmup_steps=-1", r"optimizer\.warmup_steps is -1"),
        ("run.batch_size=0", r"run\.batch_size is 0; it must be at least 1"),
        ("run.steps=5", r"run\.epochs and run\.steps: both are given"),
        ("run.epochs=null", r"run\.epochs and run\.steps: neither is given"),
        ("run.patience=2", r"run\.patience waits for a better validation loss, but data\.validation is empty"),
        ("seed=-1", r"seed is -1"),
        ("data.workers=1000", r"data\.workers is 1000"),
        ("data.max_tokens=1", r"data\.max_tokens is 1"),
        ("data.stream=true", r"data\.stream has no end, so an epoch has none: give run\.steps"),
        ("model.vision_drop_path=1", r"model\.vision_drop_path is 1\.0; it must be from 0 to below 1"),
        ("model.vision_drop_path=0.1", r"model\.vision_drop_path is for a vision_model that trains"),
        ("model.vision_checkpoint=true", r"model\.vision_checkpoint is for a vision_model that trains"),
        ("report.pictures=-1", r"report\.pictures is -1"),
        ("report.max_new_tokens=0", r"report\.max_new_tokens is 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(assignment: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        read(tmp_path, "data: {train: [{source: talks.jsonl}]}\nrun: {epochs: 1}", assignment)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.quantize=4bit", "trainable=[language_model.lm_head]"], "trainable names the language_model"),
        (
            ["data.features=kept", "trainable=[projection, bridge]"],
            "data.features keeps what the frozen parts see, but",
        ),
        (
            ["data.features=kept", "data.stream=true", "run.epochs=null", "run.steps=9"],
            "data.features is made of all pictures before the run begins, and a data.stream",
        ),
    ],
)
def test_conflicts_name_both(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        read(tmp_path, "data: {train: talks.jsonl}", *overrides)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2", r"train\.yaml:\d+ is no YAML \(the key 'seed' is there twice\)"),
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
        override(dict(content), assignment)
    except SettingsError:
        pass


def test_every_field_says_what_it_means() -> None:
    """A line of text below each field, as the sections are documented."""
    source = (ROOT / "minichat" / "train" / "config.py").read_text()
    for section in (Config, ModelConfig, DataConfig, OptimizerConfig, RunConfig, ReportConfig, Source):
        body = source.split(f"class {section.__name__}:")[1].split("\n@dataclass")[0]
        for field in dataclasses.fields(section):
            if (section, field.name) not in {
                (Config, name) for name in ("model", "data", "optimizer", "run", "report")
            }:
                assert re.search(rf'\n    {field.name}: .*\n    """[A-Z].*[.]"""\n', body), field.name


# --- the schedule

RATES = OptimizerConfig(rate=3e-5, floor=1e-5, warmup_steps=200, warmup_rate=1e-6)


def test_the_schedule_is_minigpt4s() -> None:
    """Its second stage, at points worked out by hand: warm-up from step 0, and a cosine measured over all steps."""
    assert rate_of(0, 1000, RATES) == 1e-6
    assert rate_of(100, 1000, RATES) == pytest.approx(1e-6 + 29e-6 / 2)
    assert rate_of(200, 1000, RATES) == pytest.approx(1e-5 + 1e-5 * (1 + math.cos(math.pi / 5)))
    assert rate_of(500, 1000, RATES) == pytest.approx(2e-5)
    assert rate_of(1000, 1000, RATES) == pytest.approx(1e-5)


@given(st.integers(1, 5000), st.integers(0, 6000))
def test_the_rate_is_within_its_bounds_and_falls_after_the_warm_up(steps: int, warmup: int) -> None:
    config = dataclasses.replace(RATES, warmup_steps=warmup)
    rates = [rate_of(step, steps, config) for step in range(0, steps, max(1, steps // 50))]
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
    assert (rates.floor, config.run.batch_size, config.run.steps) == published
    assert (rates.rate, rates.warmup_steps, rates.weight_decay, rates.beta1, rates.beta2) == (
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
    found = (rates.rate, rates.floor, rates.warmup_steps, run.batch_size, run.steps, config.data.max_reply_tokens)
    assert found == PUBLISHED[name]
    assert (rates.weight_decay, rates.warmup_rate, rates.beta1, rates.beta2, rates.clip) == (
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
