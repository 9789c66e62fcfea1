"""Metrics: rates and their errors, BLEU, ROUGE-L, CIDEr-D, VQA accuracy, POPE's; files for the official programs."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minichat.errors import DataError

# --- Replies in the files that the official programs take.
#
#     COCO    captions_val2014_ALG_results.json             [{"image_id": 7, "caption": "…"}, …]
#             (https://cocodataset.org/#format-results, read by pycocotools' `COCO.loadRes`)
#     VQAv2   v2_OpenEnded_mscoco_val2014_ALG_results.json  [{"question_id": 420, "answer": "…"}, …]
#             (https://visualqa.org/evaluation.html)
#     POPE    coco_pope_popular_ALG_answers.jsonl           {"question": "…", "answer": "…"}, a line for each, in order
#             (https://github.com/RUCAIBox/POPE, evaluate.py)
#
# Each is named by the file of the questions, with the model's name for ALG.


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


# --- Figures: what was measured, on how many, and how sure that is.


Z = 1.96  # the normal distribution's 97.5 % point: intervals hold 95 %
HARDLY = 0.1  # a smaller difference to the blank picture may be none

Kind = Literal["share", "rate", "score"]


@dataclass(frozen=True)
class Figure:
    """A value, or None where there was nothing to measure.

    A "share" is one of `count` like things, and so has an interval; a "rate" lies between 0 and 1, too, but is no such
    share (F1, BLEU); a "score" has a scale of its own (CIDEr-D).
    """

    value: float | None
    count: int
    kind: Kind = "share"

    def interval(self) -> tuple[float, float] | None:
        """Of a share, the 95 % interval (Wilson, Journal of the American Statistical Association 22, 1927)."""
        if self.kind != "share" or self.value is None or self.count == 0:
            return None
        n, p = self.count, self.value
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        reach = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class Outcome:
    """What one task found: figures by name, and a record of each question for those who want to look closer.

    `headline` names the figure that falls where the pictures are not seen; None where none is sure to. `results` are
    the replies in the forms of official programs.
    """

    figures: dict[str, Figure]
    records: list[dict[str, Any]] = field(default_factory=list)
    headline: str | None = None
    results: list[Results] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A figure beside what the same questions gave with blank pictures."""

    task: str
    name: str
    seen: Figure
    blank: Figure | None = None


def share(values: Iterable[float]) -> Figure:
    """The mean of truths, or of accuracies between 0 and 1."""
    listed = [float(value) for value in values]
    return Figure(sum(listed) / len(listed) if listed else None, len(listed))


def mean(values: Sequence[float], kind: Kind = "rate") -> Figure:
    """The mean of scores."""
    return Figure(sum(values) / len(values) if values else None, len(values), kind)


def ratio(part: int, whole: int) -> Figure:
    """`part` of `whole`."""
    return Figure(part / whole if whole else None, whole)


def by_kind(scored: Iterable[tuple[str, float]], overall: str = "overall") -> dict[str, Figure]:
    """The share for each kind, in the order in which they first come, and over all."""
    kinds: dict[str, list[float]] = {}
    for kind, value in scored:
        kinds.setdefault(kind, []).append(value)
    every = [value for values in kinds.values() for value in values]
    return {kind: share(values) for kind, values in kinds.items()} | {overall: share(every)}


def lines(task: str, seen: Mapping[str, Figure], blank: Mapping[str, Figure] | None) -> list[Line]:
    """Each figure beside the one of the same name."""
    return [Line(task, name, figure, (blank or {}).get(name)) for name, figure in seen.items()]


def is_blind(line: Line) -> bool:
    """Whether the pictures made hardly any difference, and none that could not be chance."""
    if line.blank is None or line.blank.value is None or line.seen.value is None:
        return False
    interval = line.seen.interval()
    by_chance = interval is None or interval[0] <= line.blank.value
    return by_chance and line.seen.value < line.blank.value + HARDLY


# --- CIDEr-D: how far a caption agrees with what people wrote of the same picture.
#
# Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (arXiv:1411.5726): CIDEr is
# section 4, CIDEr-D section 6. No library that is kept up has it without Java. Where the paper leaves a choice this
# counts as the program behind the published figures (coco-caption) does: term frequencies are plain counts, document
# frequencies are those of the references at hand, an n-gram that no reference has counts as if one picture had it, and
# the lengths that are compared are numbers of 2-grams.


NGRAMS = 4
SIGMA = 6.0  # of the Gaussian penalty on a difference in length

Words = Sequence[str]
Ngram = tuple[str, ...]


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """The score of each candidate, from 0 to 10, against its references. The corpus's score is their mean.

    With fewer than two pictures every document frequency is that of all pictures, and the scores are 0.

    Raises:
        ValueError: candidates and references are not equally many, or a candidate has no reference.
    """
    counted = [[_ngrams(reference) for reference in group] for group in references]
    frequency: Counter[Ngram] = Counter()
    for group in counted:
        frequency.update(set().union(*group))
    pictures = math.log(max(1, len(references)))

    def weigh(counts: Counter[Ngram]) -> list[dict[Ngram, float]]:
        weights: list[dict[Ngram, float]] = [{} for _ in range(NGRAMS)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (pictures - math.log(max(1, frequency[ngram])))
        return weights

    scores = []
    for words, group in zip(candidates, counted, strict=True):
        if not group:
            raise ValueError("a candidate has no reference")
        mine, own = weigh(_ngrams(words)), max(0, len(words) - 1)
        total = 0.0
        for counts in group:
            theirs = sum(count for ngram, count in counts.items() if len(ngram) == 2)
            penalty = math.exp(-((own - theirs) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(map(_agreement, mine, weigh(counts))) / NGRAMS
        scores.append(10 * total / len(group))
    return scores


def _ngrams(words: Words) -> Counter[Ngram]:
    """How often each run of 1 to 4 words occurs."""
    runs = (tuple(words[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(words) - n + 1))
    return Counter(runs)


def _agreement(mine: dict[Ngram, float], theirs: dict[Ngram, float]) -> float:
    """The cosine of two weighted vectors; what the candidate repeats counts no more often than the reference has it."""
    product = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in mine.items() if ngram in theirs)
    norms = math.sqrt(sum(w * w for w in mine.values())) * math.sqrt(sum(w * w for w in theirs.values()))
    return product / norms if norms else 0.0


# --- How close captions come to references in their wording: BLEU-4, ROUGE-L and CIDEr-D.


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
BETA = 1.2  # how much more recall weighs than precision in ROUGE-L, as captions are scored


def tokens(text: str) -> list[str]:
    """Words in lower case without punctuation, as captions are compared (Chen et al., arXiv:1504.00325, section 3)."""
    return _WORD.findall(text.lower())


def wording(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The scores of captions against one or more references each: BLEU-4 and ROUGE-L from 0 to 1, CIDEr-D 0 to 10.

    BLEU is of the corpus (Papineni et al., ACL 2002). ROUGE-L is the F-measure with β = 1.2 of the best precision and
    the best recall over the references (Lin, 2004; arXiv:1504.00325, section 3), and a mean over the captions.

    Raises:
        DataError: a caption has no reference.
    """
    from torchmetrics.functional.text import bleu_score

    if not captions:
        return {}
    if not all(references):
        raise DataError("A caption has no reference: each picture needs at least one.")
    said = [tokens(caption) for caption in captions]
    # Of two references that are equally near in length the shorter counts; torchmetrics 1.9 takes the first.
    wanted = [sorted(map(tokens, group), key=len) for group in references]
    bleu = bleu_score([" ".join(words) for words in said], [[" ".join(r) for r in group] for group in wanted], n_gram=4)
    rouge = [rouge_l(words, group) for words, group in zip(said, wanted, strict=True)]
    cider = cider_d(said, wanted)
    return {
        "BLEU-4": float(bleu),
        "ROUGE-L": sum(rouge) / len(rouge),
        "CIDEr-D": sum(cider) / len(cider),
    }


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption's words against those of its references."""
    from torchmetrics.functional.text import rouge_score

    found = [
        rouge_score(" ".join(words), " ".join(reference), rouge_keys="rougeL", normalizer=str, tokenizer=str.split)
        for reference in references
    ]
    precision = max(float(score["rougeL_precision"]) for score in found)
    recall = max(float(score["rougeL_recall"]) for score in found)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


# --- VQA accuracy with the normalisation that its server applies (https://visualqa.org/evaluation.html).
#
# An answer is right as far as people gave it: with ten answers, min(those equal to it / 3, 1), averaged over the ten
# ways to leave one of them out (Antol et al., arXiv:1505.00468, section 3). Both sides are normalised first.


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_GROUPED = re.compile(r"\d,\d")  # 1,000

# Words that are written with apostrophes; an answer that lacks some of them gets them back.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _lacking(word: str) -> set[str]:
    """The word with one or more of its apostrophes left out."""
    forms = {""}
    for letter in word:
        forms = {form + kept for form in forms for kept in (("'", "") if letter == "'" else (letter,))}
    return forms - {word}


_RESTORED = {form: word for word in _CONTRACTIONS.split() for form in _lacking(word)}


def normal(answer: str) -> str:
    """Lower case, no articles, no punctuation, digits for number words, contractions with their apostrophes."""
    text = re.sub(r"\s+", " ", answer).strip()
    bare = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_space or _GROUPED.search(text) else " ")
    bare = _PERIOD.sub("", bare).replace("’", "'")
    words = [_DIGITS.get(word, word) for word in bare.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(reply: str, answers: Sequence[str]) -> float:
    """From 0 to 1: how far the reply is one of people's answers.

    With fewer than four answers three can never agree when one is left out: then each of them is right.
    """
    mine, theirs = normal(reply), [normal(answer) for answer in answers]
    same = sum(answer == mine for answer in theirs)
    if len(theirs) < 4:
        return float(same > 0)
    # Leaving out one that is equal leaves `same - 1`; leaving out another leaves `same`.
    return (same * min((same - 1) / 3, 1) + (len(theirs) - same) * min(same / 3, 1)) / len(theirs)


def within(reply: str, answers: Sequence[str]) -> bool:
    """Whether the commonest answer stands in the reply as words: a reply in sentences says more than its answer."""
    theirs = [normal(answer) for answer in answers]
    commonest = max(theirs, key=theirs.count, default="")
    return bool(commonest) and f" {commonest} " in f" {normal(reply)} "


# --- Yes or no, and the figures of POPE (Li et al., "Evaluating Object Hallucination…", arXiv:2305.10355).


def says_yes(reply: str) -> bool:
    """As POPE reads a reply: no where its first sentence has "no" or "not", else yes."""
    first = reply.split(".")[0].replace(",", "")
    return not {"no", "not"} & set(first.lower().split())


def is_clear(reply: str) -> bool:
    """Whether the reply says yes or no at all: for POPE, what says neither is a yes."""
    return re.search(r"\b(yes|no|not)\b", reply.lower()) is not None


def yes_no_figures(said: Sequence[bool], true: Sequence[bool], prefix: str = "") -> dict[str, Figure]:
    """Accuracy, precision, recall and F1 of "yes", and the share of yes.

    Precision is of all that was said to be there, recall of all that is there.
    """
    pairs = list(zip(said, true, strict=True))
    hits = sum(s and t for s, t in pairs)
    precision = ratio(hits, sum(said))
    recall = ratio(hits, sum(true))
    p, r = precision.value, recall.value
    f1 = None if not true else 2 * p * r / (p + r) if p and r else 0.0
    return {
        f"{prefix}accuracy": ratio(sum(s == t for s, t in pairs), len(pairs)),
        f"{prefix}precision": precision,
        f"{prefix}recall": recall,
        f"{prefix}F1": Figure(f1, len(pairs), "rate"),
        f"{prefix}says yes": ratio(sum(said), len(pairs)),
    }


Id = int | str


def readable(text: str) -> str:
    """`text` with what is no character escaped: a file's name may hold bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
