"""Synthetic scenes with a question each, one click away on the page."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from minichat.toy.world import Background, Scene, Thing, draw

SIDE = 256  # pixels


@dataclass(frozen=True)
class Example:
    """A scene, what the page suggests to ask about it, and a word that a right reply holds (None: many are right)."""

    scene: Scene
    question: str
    answer: str | None

    def picture(self) -> Image.Image:
        """The scene, drawn. Always the same picture."""
        return draw(self.scene, SIDE)


def _plain(colour: str) -> Background:
    return Background("plain", (colour,))


EXAMPLES = (
    Example(
        Scene((Thing("heart", "red", "large", 0.5, 0.5, 0.2),), _plain("white")),
        "What is in the picture?",
        "heart",
    ),
    Example(
        Scene(
            (
                Thing("star", "yellow", "large", 0.27, 0.3, 0.17, 12),
                Thing("circle", "orange", "large", 0.7, 0.66, 0.18),
            ),
            _plain("blue"),
        ),
        "What colour is the star?",
        "yellow",
    ),
    Example(
        Scene(
            (
                Thing("circle", "red", "large", 0.22, 0.24, 0.16),
                Thing("circle", "red", "small", 0.5, 0.5, 0.095),
                Thing("circle", "red", "large", 0.77, 0.76, 0.17),
                Thing("square", "black", "small", 0.76, 0.24, 0.095, 8),
            ),
            Background("gradient", ("white", "gray")),
        ),
        "How many circles are there?",
        "three",
    ),
    Example(
        Scene(
            (
                Thing("triangle", "green", "large", 0.27, 0.5, 0.19, 5),
                Thing("ring", "purple", "large", 0.74, 0.5, 0.18),
            ),
            _plain("pink"),
        ),
        "What is to the right of the triangle?",
        "ring",
    ),
    Example(
        Scene(
            (
                Thing("diamond", "blue", "large", 0.5, 0.27, 0.18),
                Thing("cross", "orange", "large", 0.5, 0.74, 0.17, 10),
            ),
            Background("noisy", ("green",)),
        ),
        "What colour is the background?",
        "green",
    ),
    Example(
        Scene(
            (
                Thing("star", "pink", "large", 0.24, 0.26, 0.16, 20),
                Thing("heart", "purple", "small", 0.73, 0.24, 0.1),
                Thing("square", "white", "large", 0.68, 0.7, 0.17, -10),
                Thing("ring", "yellow", "small", 0.25, 0.76, 0.1),
            ),
            Background("gradient", ("black", "blue")),
        ),
        "Describe the picture in detail.",
        None,
    ),
)
