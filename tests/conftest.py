"""What every test may count on: no network, few threads, and the reference cases where they are present."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before transformers or gradio is imported, and inherited by the programs that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
from hypothesis import settings

import tests.seeds  # noqa: F401 (shifts them)
from minichat.weights.hub import home

# The everyday suite tries the same examples each time, so that a red run is a change's doing;
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# A shell that runs the tests in the background tells them to ignore Ctrl-C, and so would the programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
REAL_HOME = home()  # of the user, before tests have one of their own


def reference_folders() -> list[Path]:
    named = os.environ.get("MINICHAT_REFERENCE")
    if named is not None:
        return [Path(folder) for folder in named.split(os.pathsep) if folder]
    shared = ROOT.parent / "shared"
    places = (ROOT / "tests" / "reference", shared / "reference", shared / "reference-family")
    return [folder for folder in places if folder.is_dir()]


def all_cases() -> list[Path]:
    """Every reference case, a folder with a `case.json`. The same case below two folders is there twice."""
    return [file.parent for root in reference_folders() for file in sorted(root.rglob("case.json"))]


def pytest_collection_finish() -> None:
    """What is imported by now is there to stay: no collection looks through it, nor does a fork copy it."""
    gc.freeze()


def pytest_runtest_call(item: pytest.Item) -> None:
    """A test of a reference case says which in its report, also from another process."""
    params = getattr(item, "callspec", None)
    named = [] if params is None else params.params.values()
    item.user_properties += [("reference case", str(one)) for one in named if _is_case(one)]


def _is_case(value: object) -> bool:
    return isinstance(value, Path) and (value / "case.json").is_file()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many reference cases ran, wherever tests of them were asked for."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call" and "reference" in Path(report.nodeid.partition("::")[0]).name
    ]
    if reports:
        ran = {value for report in reports for name, value in report.user_properties if name == "reference case"}
        terminalreporter.section("reference cases")
        terminalreporter.write_line(reference_summary(ran))


def reference_summary(ran: set[str]) -> str:
    """How many cases ran; where none did, where to put them."""
    here = len(all_cases())
    if ran:
        return f"{len(ran)} of {here} ran: {', '.join(sorted(ran))}"
    if here:
        return f"None of {here} ran: their tests were not selected."
    named = os.environ.get("MINICHAT_REFERENCE")
    where = "there are none here" if named is None else f"MINICHAT_REFERENCE names {named!r}, where there are none"
    return (
        f"None ran: {where}. A case is a folder with a case.json. Put it below tests/reference, or name the folder "
        f"that it is in: MINICHAT_REFERENCE=FOLDER (several with {os.pathsep!r} between them)."
    )


@pytest.fixture(scope="session")
def reference() -> Path:
    """The first folder of reference cases: `MINICHAT_REFERENCE`, `tests/reference`, or one beside the project."""
    folders = reference_folders()
    if not folders:
        pytest.skip("no reference cases: set MINICHAT_REFERENCE to their folder")
    return folders[0]


@pytest.fixture(scope="session", autouse=True)
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept is kept for these tests alone, not for the user, whose LLM does not change which model "auto" is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINICHAT_HOME", str(tmp_path_factory.getbasetemp() / "home"))
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, for the tests of one file."""
    from benchmarks.screenshot import open_browser

    with open_browser() as opened:
        yield opened
