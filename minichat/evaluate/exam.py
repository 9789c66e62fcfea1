"""What every task is: a fixed set of questions that a bot, seeing or blind, can be put through."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

from minichat.evaluate.figures import Outcome
from minichat.evaluate.replies import Teller


class Content(Protocol):
    def content(self) -> Iterable[str]:
        """All that is asked and what is true, as text: what makes two exams the same."""
        ...


class Exam(Content, Protocol):
    """Equal exams ask the same of every bot."""

    def take(self, teller: Teller) -> Outcome:
        """Ask, and score what is replied."""
        ...


def fingerprint(exam: Content) -> str:
    """A hash of what is asked: figures can be compared where it is the same."""
    whole = hashlib.sha256()
    for text in exam.content():
        whole.update(text.encode("utf-8", "surrogatepass"))  # a file's name may be no Unicode
        whole.update(b"\n")
    return whole.hexdigest()
