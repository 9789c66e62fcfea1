"""Replies in the files that the official programs take.

    COCO    captions_val2014_ALG_results.json             [{"image_id": 7, "caption": "…"}, …]
            (https://cocodataset.org/#format-results, read by pycocotools' `COCO.loadRes`)
    VQAv2   v2_OpenEnded_mscoco_val2014_ALG_results.json  [{"question_id": 420, "answer": "…"}, …]
            (https://visualqa.org/evaluation.html)
    POPE    coco_pope_popular_ALG_answers.jsonl           {"question": "…", "answer": "…"}, a line for each, in order
            (https://github.com/RUCAIBox/POPE, evaluate.py)

Each is named by the file of the questions, with the model's name for ALG.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

RESULTS, ANSWERS = "results.json", "answers.jsonl"


@dataclass(frozen=True)
class Results:
    """What goes into one file. `stem`: of the questions' file; `ending`: one of the two above."""

    stem: str
    ending: str
    rows: tuple[dict[str, Any], ...]

    def name(self, model: str) -> str:
        algorithm = re.sub(r"[^\w.-]+|_", "-", model, flags=re.ASCII).strip("-.") or "model"
        return f"{self.stem}_{algorithm}_{self.ending}"

    def text(self) -> str:
        """A JSON list, or JSON lines. What is no Unicode is escaped."""
        if self.ending == RESULTS:
            return json.dumps(self.rows) + "\n"
        return "".join(json.dumps(row) + "\n" for row in self.rows)


def grouped(rows: Iterable[tuple[str, dict[str, Any]]], ending: str) -> list[Results]:
    """Rows with the stems of the files that they belong to → a file for each stem, in order."""
    files: dict[str, list[dict[str, Any]]] = {}
    for stem, row in rows:
        files.setdefault(stem, []).append(row)
    return [Results(stem, ending, tuple(found)) for stem, found in files.items()]
