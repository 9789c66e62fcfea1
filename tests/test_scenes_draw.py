"""Scenes and pictures: equal seeds give equal pixels, what is drawn is what the scene says, and it is quick."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest

from minichat.toy.world import (
    COLOURS,
    GAP,
    MAX_THINGS,
    RADII,
    RGB,
    SHAPES,
    SIZES,
    Background,
    Scene,
    Style,
    Thing,
    draw,
    random_scene,
)

SCENES = [random_scene(random.Random(seed)) for seed in range(300)]
EXACT = Style(jitter=0)


def test_things_keep_their_distance_and_stay_inside() -> None:
    for scene in SCENES:
        for thing in scene.things:
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            for place in (thing.x, thing.y):
                assert thing.radius + GAP <= place <= 1 - thing.radius - GAP
        for a, b in itertools.combinations(scene.things, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 1e-9


def test_no_thing_has_a_colour_of_its_background() -> None:
    assert all(thing.colour not in scene.background.colours for scene in SCENES for thing in scene.things)


def test_everything_the_world_knows_is_drawn() -> None:
    things = [thing for scene in SCENES for thing in scene.things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.size for t in things} == set(SIZES)
    assert {len(scene.things) for scene in SCENES} == set(range(1, MAX_THINGS + 1))
    assert {scene.background.kind for scene in SCENES} == {"plain", "gradient", "noisy"}


@pytest.mark.parametrize("count", range(1, MAX_THINGS + 1))
def test_the_number_of_things_is_the_one_asked_for(count: int) -> None:
    assert all(len(random_scene(random.Random(seed), things=count).things) == count for seed in range(30))


def test_equal_seeds_give_equal_scenes_and_pixels() -> None:
    first, second = (random_scene(random.Random(5)) for _ in range(2))
    assert first == second
    assert draw(first, seed=7) == draw(second, seed=7)
    assert draw(first, seed=7) != draw(first, seed=8)  # the shades stray with the seed


def test_a_scene_survives_json() -> None:
    assert all(Scene.from_dict(scene.to_dict()) == scene for scene in SCENES[:50])


@pytest.mark.parametrize("size", [64, 96, 400])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_has_its_colour_where_the_scene_says(shape: str, size: int) -> None:
    thing = Thing(shape, "red", "large", x=0.4, y=0.6, radius=0.18, angle=5)
    pixels = np.asarray(draw(Scene((thing,), Background("plain", ("white",))), size, style=EXACT)).astype(int)
    red = np.abs(pixels - RGB["red"]).sum(-1) < 40
    rows, columns = np.nonzero(red)
    assert red.any()
    assert abs((columns.min() + columns.max() + 1) / 2 / size - 0.4) < 0.045  # a triangle's box is not about its centre
    assert abs((rows.min() + rows.max() + 1) / 2 / size - 0.6) < 0.055
    far = np.hypot((columns + 0.5) / size - 0.4, (rows + 0.5) / size - 0.6)
    assert far.max() <= 0.18 + 2 / size
    centre = red[int(0.6 * size), int(0.4 * size)]
    assert centre == (shape != "ring")  # only a ring has a hole


def test_shapes_differ_from_each_other() -> None:
    drawn = {}
    for shape in SHAPES:
        thing = Thing(shape, "black", "small", 0.5, 0.5, RADII["small"][0])
        drawn[shape] = np.asarray(draw(Scene((thing,), Background("plain", ("white",))), style=EXACT)).astype(int)
    for a, b in itertools.combinations(SHAPES, 2):
        assert (np.abs(drawn[a] - drawn[b]).sum(-1) > 100).sum() >= 15, (a, b)  # of about 150 pixels


def test_edges_are_antialiased_unless_the_style_says_otherwise() -> None:
    scene = Scene((Thing("circle", "black", "large", 0.5, 0.5, 0.2),), Background("plain", ("white",)))
    shades = {oversample: len(np.unique(draw(scene, style=Style(oversample, jitter=0)))) for oversample in (1, 3)}
    assert shades[3] > 2 * shades[1]


def test_at_least_300_pictures_a_second_on_one_core() -> None:
    start = time.process_time()
    for seed in range(150):
        draw(random_scene(random.Random(seed)), seed=seed)
    assert 150 / (time.process_time() - start) >= 300
