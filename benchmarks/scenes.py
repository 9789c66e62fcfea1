"""What a model sees of 1,000 held-out scenes, as a Markdown table: `python benchmarks/scenes.py --help`."""

from __future__ import annotations

import argparse
import time

import minichat
from minichat.evaluate.scenes import DRAWINGS, accuracy, held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minichat-tiny")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument(
        "--drawings", type=int, default=300, help="scenes for the other ways of drawing; 0 leaves them out"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    bot = minichat.load(arguments.model)
    asked = held_out(arguments.scenes, arguments.seed)
    start = time.monotonic()
    seen, blank = accuracy(bot, asked), accuracy(bot, asked, drawing=None)
    print(f"{len(asked)} questions about {arguments.scenes} held-out scenes, {arguments.model}\n")
    print("| questions about | right | blank picture | difference |\n|---|---|---|---|")
    for kind in seen:
        print(f"| {kind} | {seen[kind]:.1%} | {blank[kind]:.1%} | {100 * (seen[kind] - blank[kind]):+.1f} points |")
    if arguments.drawings:
        part = [a for a in asked if a.seed < arguments.drawings]
        print(f"\n{len(part)} of these questions, the scenes drawn another way\n")
        print("| drawing | right |\n|---|---|")
        for name, drawing in DRAWINGS.items():
            print(f"| {name} | {accuracy(bot, part, drawing)['overall']:.1%} |")
    print(f"\n{time.monotonic() - start:.0f} seconds")


if __name__ == "__main__":
    main()
