"""How a model takes words that no training form spells: `python -m benchmarks.own_words minichat-tiny`.

The hand-written questions of `tests/own_questions.jsonl`, each about a scene that follows from the seed; every reply is
right, wrong, evasive or nonsense. `--replies FILE` keeps each with its verdict.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from minichat import load
from minichat.evaluate.metrics import share
from minichat.evaluate.replies import Ask, Teller
from minichat.evaluate.run import shown
from minichat.fileio import json_line
from minichat.toy.evaluate import Drawn
from minichat.toy.speech.speaker import topic
from minichat.toy.speech.verdict import VERDICTS, judge
from tests.own_questions import own_questions

LONGEST = 120  # tokens of a reply: of a description


def main() -> None:
    """Ask, judge, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="minichat-tiny")
    parser.add_argument("--seeds", type=int, default=1, help="how many scenes each is asked about")
    parser.add_argument("--replies", type=Path, help="a file for all replies, as JSONL")
    options = parser.parse_args()
    asked = [own for seed in range(options.seeds) for own in own_questions(seed)]
    teller = Teller(load(options.model))
    asks = [Ask(own.text, (Drawn(own.scene, number),)) for number, own in enumerate(asked)]
    replies = [reply.text for reply in teller.replies(asks, LONGEST)]
    verdicts = [judge(own.program, own.answer, own.scene, reply) for own, reply in zip(asked, replies, strict=True)]
    topics: dict[str, Counter[str]] = {}
    for own, verdict in zip(asked, verdicts, strict=True):
        topics.setdefault(topic(own.program), Counter())[verdict] += 1
    topics["all"] = Counter(verdicts)
    print(f"| | {' | '.join(VERDICTS)} | of |\n|---|{'---:|' * (len(VERDICTS) + 1)}")
    for name, found in topics.items():
        row = " | ".join(f"{found[verdict] / found.total():.1%}" for verdict in VERDICTS)
        print(f"| {name} | {row} | {found.total()} |")
    right = share(verdict == "right" for verdict in verdicts)
    low, high = right.interval() or (0.0, 1.0)
    print(f"\nRight: {shown(right)} ({low:.1%} – {high:.1%}, 95 %)")
    if options.replies is not None:
        lines = (
            {"question": own.text, "answer": own.answer.reply, "reply": reply, "verdict": verdict}
            for own, reply, verdict in zip(asked, replies, verdicts, strict=True)
        )
        options.replies.write_text("".join(json_line(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
