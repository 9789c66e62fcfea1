"""How much hangs on the way in which held-out scenes are drawn, as a Markdown table.

`minichat evaluate questions` has the figures for each kind of question.
"""

from __future__ import annotations

import argparse
import time

import minichat
from minichat.toy.evaluate import WAYS, accuracy, held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minichat-tiny")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    bot = minichat.load(arguments.model)
    asked = held_out(arguments.scenes, arguments.seed)
    start = time.monotonic()
    print(f"{len(asked)} questions about {arguments.scenes} held-out scenes, {arguments.model}\n")
    print("| drawing | right |\n|---|---|")
    for name, drawer in WAYS.items():
        print(f"| {name} | {accuracy(bot, asked, drawer)['overall']:.1%} |", flush=True)
    print(f"| a blank picture | {accuracy(bot, asked, drawing=None)['overall']:.1%} |")
    print(f"\n{time.monotonic() - start:.0f} seconds")


if __name__ == "__main__":
    main()
