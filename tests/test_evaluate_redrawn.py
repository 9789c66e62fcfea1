"""Scenes drawn by another program: the same things in the same places, by a code of its own."""

from __future__ import annotations

import random
import sys
from types import FrameType

import numpy as np
import pytest

from minichat.toy import world
from minichat.toy.evaluate import DISTANCES, MANNERS, PALETTES, SHIFT, Manner, redraw
from minichat.toy.world import COLOURS, POLYGONS, SHAPES, Background, Scene, Thing, draw, random_scene

WHITE = Background("plain", ("white",))


def covered(shape: str, other: bool, angle: float = 0.0) -> np.ndarray:
    """Where a black thing on white is dark, (S, S)."""
    scene = Scene((Thing(shape, "black", "large", 0.5, 0.5, 0.3, angle),), WHITE)
    picture = redraw(scene, Manner(side=96), 0) if other else draw(scene, 96, 0)
    return np.asarray(picture.convert("L")) < 128


def test_it_knows_every_word_and_shares_no_code_with_the_trainings_drawer():
    assert set(DISTANCES) == set(SHAPES)
    assert all(set(palette) == set(COLOURS) for palette in PALETTES)
    things = tuple(Thing(shape, "red", "small", 0.1 + 0.1 * n, 0.5, 0.05) for n, shape in enumerate(SHAPES))
    called = set[str]()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == world.__file__:
            called.add(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        for kind in ("plain", "noisy", "gradient"):
            colours = ("white", "blue")[: 2 if kind == "gradient" else 1]
            redraw(Scene(things, Background(kind, colours)), Manner(side=48), 0)
    finally:
        sys.setprofile(None)
    assert not {name for name in called if not name.startswith(("Scene.", "Thing.", "Background."))}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_like_the_trainings_but_not_the_same(shape):
    """Each is nearer to its own kind than to any other, and differs from it by a few pixels in a hundred."""
    mine = covered(shape, other=True)
    overlap = {
        name: (mine & covered(name, other=False)).sum() / (mine | covered(name, other=False)).sum() for name in SHAPES
    }
    assert max(overlap, key=lambda name: overlap[name]) == shape
    assert 0.7 < overlap[shape] < 1


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape in POLYGONS])
def test_a_turned_shape_is_turned_the_same_way(shape):
    turned, straight, back = (covered(shape, other, angle) for other, angle in ((True, 20), (False, 20), (False, -20)))
    assert (turned ^ straight).sum() <= (turned ^ back).sum()


def test_equal_arguments_draw_equal_pixels_and_every_manner_is_another():
    scene = random_scene(random.Random(3), things=4)
    for manner in MANNERS.values():
        once, again, other = (manner.draw(scene, seed).tobytes() for seed in (7, 7, 8))
        assert once == again
        assert once != other
        assert manner.draw(scene, 7).size == (manner.side, manner.side)
    small = {name: manner.draw(scene, 7).resize((64, 64)).tobytes() for name, manner in MANNERS.items()}
    assert len(set(small.values())) == len(MANNERS)


@pytest.mark.parametrize("name", MANNERS)
def test_a_thing_has_its_colour_where_the_scene_says_it_is(name):
    """The middle of a circle is nearest to its own colour's paint, in every manner."""
    for seed, colour in enumerate(COLOURS):
        ground = "white" if colour not in ("white", "yellow", "pink") else "blue"
        scene = Scene((Thing("circle", colour, "large", 0.3, 0.65, 0.18),), Background("plain", (ground,)))
        picture = np.asarray(MANNERS[name].draw(scene, seed), np.float64)
        side = picture.shape[0]
        reach = side // 16
        y, x = int(0.65 * side), int(0.3 * side)
        middle = picture[y - reach : y + reach, x - reach : x + reach].mean((0, 1))
        paints = {
            word: min(
                np.abs(middle - [int(palette[word][i : i + 2], 16) for i in (1, 3, 5)]).sum() for palette in PALETTES
            )
            for word in COLOURS
        }
        assert min(paints, key=lambda word: paints[word]) == colour, (name, colour, middle)


def test_seen_from_aside_nothing_moves_further_than_is_sure():
    for seed in range(10):
        scene = random_scene(random.Random(f"aside {seed}"), things=1, backgrounds=("plain",))
        (thing,) = scene.things
        pictures = [np.asarray(redraw(scene, Manner(side=200, tilt=tilt), seed), np.float64) for tilt in (0.0, 0.08)]
        centres = []
        for picture in pictures:
            y, x = np.nonzero(np.abs(picture - picture[0, 0]).sum(-1) > 60)
            centres.append((x.mean() / 200, y.mean() / 200))
        assert max(abs(a - b) for a, b in zip(*centres, strict=True)) < SHIFT + 0.01
        assert abs(centres[0][0] - thing.x) < 0.1 * thing.radius + 0.02


def test_backgrounds_are_of_their_kind():
    def rough(kind: str, colours: tuple[str, ...]) -> tuple[float, float]:
        """How much neighbours differ, and how much the corners do."""
        scene = Scene((), Background(kind, colours))
        pixels = np.asarray(redraw(scene, Manner(side=96), 1), np.float64)
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        return float(np.abs(np.diff(pixels, axis=0)).mean()), float(np.ptp(corners, axis=0).max())

    assert rough("plain", ("red",)) == (0, 0)
    neighbours, corners = rough("gradient", ("red", "blue"))
    assert 0 < neighbours < 5 < 100 < corners
    assert rough("noisy", ("gray",))[0] > 10
