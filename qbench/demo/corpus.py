"""The world as text: an endless stream of documents of several kinds, with no end to the sampling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from qbench.demo.world import (
    SUBJECTS,
    Question,
    World,
    answered,
    ask,
    drill,
    header,
    keys,
    lookups,
    short_answer,
    statement,
)

SENTENCES = 4
SHORT_ANSWERS = 4
SHOTS = 3
EXAM_QUESTIONS = 6

FIND = {"keys": 62, "lookups": 38}
"""Percent of each kind of document at first: to find an option by its name. A model that meets whole questions at once
stays at chance for long, because it must learn to know, to find and to answer with a letter all at the same time."""

CHOOSE = {
    "keys": 10,
    "lookups": 10,
    "drills": 20,
    "short drills": 3,
    "short answers": 17,
    "questions": 35,
    "statements": 5,
}
"""Then: to know the answer, and to answer with the letter of what it knows."""

LATE = {"statements": 20, "short answers": 20, "drills": 5, "questions": 25, "exam": 30}
"""At last: knowledge, and whole prompts with MMLU's header."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the word that each of its «Answer:» stands for, whether a letter follows or the word itself."""

    text: str
    answers: tuple[str, ...] = ()


def documents(world: World, rng: Random, mix: dict[str, int]) -> Iterator[Document]:
    """Documents of the world for ever, in the given mixture."""
    kinds, weights = list(mix), list(mix.values())
    while True:
        yield document(world, rng, rng.choices(kinds, weights)[0])


def document(world: World, rng: Random, kind: str) -> Document:
    """One document of a kind: a few sentences or questions, with a blank line between questions."""
    if kind == "statements":
        return Document(" ".join(statement(world, rng.choice(world.places), rng) for _ in range(SENTENCES)))
    if kind == "short answers":
        asked = [ask(world, rng.choice(SUBJECTS), rng.choice(world.places), rng) for _ in range(SHORT_ANSWERS)]
        return _joined(map(short_answer, asked), asked)
    subject = rng.choice(SUBJECTS)
    if kind == "keys":
        return Document(keys(world, subject, rng))
    if kind == "lookups":
        text, found = lookups(world, subject, rng)
        return Document(text, tuple(found))
    if kind in ("drills", "short drills"):
        drills = [drill(world, subject, rng) for _ in range(SHOTS)]
        return _joined(map(answered if kind == "drills" else short_answer, drills), drills)
    places = rng.sample(world.places, EXAM_QUESTIONS if kind == "exam" else SHOTS)
    questions = [ask(world, subject, place, rng) for place in places]
    opening = [header(subject.name)] if kind == "exam" else []
    return _joined([*opening, *map(answered, questions)], questions)


def _joined(parts: Iterator[str] | list[str], questions: list[Question]) -> Document:
    return Document("\n\n".join(parts), tuple(question.value for question in questions))


def sample_text(world: World, seed: str, characters: int) -> str:
    """Text of the late mixture, documents joined by blank lines, cut after the first that reaches the length."""
    parts: list[str] = []
    length = 0
    for document in documents(world, Random(seed), LATE):
        parts.append(document.text)
        length += len(document.text) + 2
        if length >= characters:
            break
    return "\n\n".join(parts) + "\n"
