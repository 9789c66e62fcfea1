"""Workers that die lose no caption and write none twice: the driver, with a stand-in for Ray, and with processes."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from minichat.captioning import cluster
from minichat.captioning.captioner import Captioner, Facts, Job
from minichat.captioning.cluster import Workers
from minichat.errors import DataError, ModelError, PromptError, SettingsError


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class Actor:
    """A worker in this process, whose calls are done when they are waited for."""

    def __init__(self, ray: Ray, kind: Any, load: Any) -> None:
        self.ray, self.dead, self.worker = ray, False, None
        self.make = lambda: kind(load)
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Call:
            made = Call(self, name, arguments)
            self.calls.append(made)
            return made

        return SimpleNamespace(remote=call)


class Call:
    def __init__(self, actor: Actor, name: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.name, self.arguments = actor, name, arguments

    def result(self) -> Any:
        actor = self.actor
        assert actor.calls[0] is self  # in their order
        actor.dead = actor.dead or actor.ray.dies(self)
        if actor.dead:
            raise RayError("The actor died.")
        actor.calls.pop(0)
        actor.worker = actor.worker or actor.make()
        return getattr(actor.worker, self.name)(*self.arguments)


class Ray:
    """As much of Ray as the driver uses; `dies` says of a call whether its worker is killed in it."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, dies: Any = lambda call: False, machines: Any = ({"CPU": 2}, {"CPU": 2})) -> None:
        self.dies, self.machines = dies, machines
        self.chance = random.Random(0)
        self.places: list[dict[str, Any]] = []
        self.over = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.machines] + [{"Alive": False, "Resources": {}}]

    def put(self, value: Any) -> Any:
        return value

    def get(self, call: Call) -> Any:
        return call.result()

    def wait(self, calls: list[Call], num_returns: int) -> tuple[list[Call], list[Call]]:
        chosen = self.chance.choice(calls)
        return [chosen], [call for call in calls if call is not chosen]

    def remote(self, kind: Any) -> Any:
        def options(max_restarts: int, **place: Any) -> Any:
            self.places.append(place)
            return SimpleNamespace(remote=lambda load: Actor(self, kind, load))

        return SimpleNamespace(options=options)

    def shutdown(self) -> None:
        self.over = True


class Bot:
    """Says which red a picture is, and cannot see 13."""

    caption_prompt = "Describe it."

    def caption(self, pictures: Any, prompt: Any = None, batch_size: int = 1, **settings: Any) -> list[str]:
        seen = [picture.getpixel((0, 0))[0] for picture in pictures]
        if 13 in seen:
            raise ValueError
        if prompt == "wrong":
            raise PromptError("It is wrong.")
        return [f"red {each}" for each in seen]


def job(number: int, prompt: str = "What?") -> Job:
    return Job(Image.new("RGB", (1, 1), (number, 0, 0)), prompt)


WINDOWS = [[job(number) for number in range(8 * n, 8 * n + 8)] for n in range(10)]
WINDOWS[4:4] = [[]]  # a window in which all is known
ALONE = [list(each) for each in Captioner(Bot(), 4, {}).windows(WINDOWS)]


def captioned(monkeypatch: pytest.MonkeyPatch, ray: Ray, windows: Any = WINDOWS, load: Any = Bot) -> list[Any]:
    monkeypatch.setattr(cluster, "_connected", lambda: ray)
    with Workers(load) as workers:
        found = list(workers.captioner(4, {}).windows(windows))
    assert ray.over
    return found


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_die_cost_no_caption_and_write_none_twice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, deaths = random.Random(seed), [0]

    def dies(call: Call) -> bool:  # as seldom as it takes for no picture to be the culprit
        dead = deaths[0] < 2 and chance.random() < 0.3
        deaths[0] += dead
        return dead

    ray = Ray(dies)
    assert captioned(monkeypatch, ray) == ALONE
    assert len(ray.places) == 2 + deaths[0]


def test_a_picture_that_kills_workers_is_found_and_the_others_have_their_captions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dies(call: Call) -> bool:
        return call.name == "outcomes" and any(
            each.picture.getpixel((0, 0)) == (42, 0, 0) for each in call.arguments[0]
        )

    found = captioned(monkeypatch, Ray(dies))
    assert [[one.error for one in window if one.error] for window in found].count([]) == len(WINDOWS) - 2  # 13 and 42
    wrong = found[6].pop(2)
    assert wrong.caption is None and "3 workers died of this picture" in wrong.error
    right = [list(each) for each in ALONE]
    del right[6][2]
    assert found == right


def test_so_many_windows_are_taken_as_workers_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, given = [0], 0

    def windows() -> Any:
        for window in WINDOWS:
            taken[0] += 1
            yield window

    monkeypatch.setattr(cluster, "_connected", Ray)
    with Workers(Bot) as workers:
        for _ in workers.captioner(4, {}).windows(windows()):
            given += 1
            assert taken[0] - given < 3 * len(workers)
    assert taken[0] == given == len(WINDOWS)


def test_what_concerns_all_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match="It is wrong"):
        captioned(monkeypatch, Ray(), [[job(1, "wrong")]])

    def absent() -> Any:
        raise ModelError("There is no model 'absent'.")

    with pytest.raises(ModelError, match="absent"):
        captioned(monkeypatch, Ray(), load=absent)
    with pytest.raises(ModelError, match="3 workers died while they loaded the model"):
        captioned(monkeypatch, Ray(lambda call: call.name == "facts"))
    with pytest.raises(SettingsError, match="workers"):
        Workers(Bot, 0)


def test_workers_with_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    different = iter(["a", "b"])
    monkeypatch.setattr(Facts, "of", lambda bot: Facts(next(different)))
    with pytest.raises(ModelError, match="not have the same model"):
        captioned(monkeypatch, Ray())


@pytest.mark.parametrize(
    ("machines", "count", "gpus", "wanted"),
    [
        ([{"CPU": 2}, {"CPU": 8}], None, True, [{"num_cpus": 2}, {"num_cpus": 8}]),
        ([{"CPU": 2}, {"CPU": 8}], 5, True, [{"num_cpus": 2}] * 5),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], None, True, [{"num_gpus": 1}] * 3),
        ([{"CPU": 8, "GPU": 2}], 1, True, [{"num_gpus": 1}]),
        ([{"CPU": 8, "GPU": 2}], None, False, [{"num_cpus": 8}]),
    ],
)
def test_what_workers_take(machines: Any, count: Any, gpus: bool, wanted: Any) -> None:
    places = cluster._places(Ray(machines=machines), count, gpus)
    assert [{k: v for k, v in each.items() if k != "scheduling_strategy"} for each in places] == wanted


class Mortal(Bot):
    """Kills its process at the pictures of one red, the first time that they are seen."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def caption(self, pictures: Any, *arguments: Any, **settings: Any) -> list[str]:
        if any(each.getpixel((0, 0))[0] == 26 for each in pictures) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().caption(pictures, *arguments, **settings)


def test_processes_of_this_machine_write_what_one_does_whatever_dies(tmp_path: Path) -> None:
    with Workers(partial(Mortal, tmp_path / "dead"), 2, here=True) as workers:
        first = {hand.actor.process.pid for hand in workers._hands}
        found = list(workers.captioner(4, {}).windows(WINDOWS))
        processes = [hand.actor.process for hand in workers._hands]
        assert len(first & {each.pid for each in processes}) == 1  # the other one was replaced
        with pytest.raises(PromptError, match="It is wrong"):
            list(workers.captioner(4, {}).windows([[job(1, "wrong")]]))
    assert found == ALONE
    assert all(each.exitcode is not None for each in processes)  # they have ended


def test_a_cluster_without_processors_is_refused() -> None:
    with pytest.raises(DataError, match="processor"):
        cluster._places(Ray(machines=[{}]), None, True)
