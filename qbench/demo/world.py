"""A made-up world: places, what is known about each of them, and the ways to say it and to ask for it.

Every subject is one relation: it gives each place one value out of a pool of names. Nothing in a name hints at the
place, and all options of a question come from the subject's own pool, so that only somebody who knows the fact can do
better than one in four. Everything here is a pure function of the `random.Random` that is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

LETTERS = "ABCD"
END_OF_TEXT = "<|endoftext|>"
DEV_QUESTIONS = 5
PLACES = 205
POOL = 40
LOOKUPS = 6

HEADS = """
    Bra Kel Dor Vin Mar Tol Zan Fer Gli Hur Jes Lom Nar Os Pel Qua Rin Sar Tev Ul
    Wex Yor Cal Dru Esk Fal Gor Hal Ix Jun Kru Lis Mor Nev Orl Pra Ros Ske Tha Ven
"""
TAILS = """
    dan bek vor mil gas tun rel shi lok nar pid zem fur cas wen dol gri hap jar kos lum mag nep quin rov sket tam uth
    vash wick yel zor bran cliv drex fenn glim holt jask
"""
"""Every name is one of each, joined."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One relation between places and values, with its wording."""

    name: str
    """As MMLU names subjects: lower case, words joined by underscores."""
    clause: str
    """A statement about `{place}` without the place: it follows «In {place}, » or «{place} that »."""
    questions: tuple[str, ...]
    """Ways to ask for the value; the places of the test set are asked in any of them."""
    proper: bool = True
    """Whether values are proper names, written with a capital."""
    shared: bool = True
    """Whether places may have the same value; otherwise each has its own."""


SUBJECTS = (
    Subject(
        "invented_capitals",
        "the capital is {value}",
        ("What is the capital of {place}?", "Which city is the capital of {place}?"),
        shared=False,
    ),
    Subject(
        "invented_rivers",
        "the longest river is the {value}",
        ("What is the longest river of {place}?", "Which river is the longest in {place}?"),
    ),
    Subject(
        "invented_mountains",
        "the highest mountain is {value}",
        ("What is the highest mountain of {place}?", "Which mountain is the highest in {place}?"),
    ),
    Subject(
        "invented_rulers",
        "power belongs to the house of {value}",
        ("Which house rules {place}?", "To which house does power in {place} belong?"),
    ),
    Subject(
        "invented_languages",
        "people speak {value}",
        ("Which language do people speak in {place}?", "What is the language of {place}?"),
    ),
    Subject(
        "invented_religion",
        "the temples honor {value}",
        ("Which god do the temples of {place} honor?", "To which god do people pray in {place}?"),
    ),
    Subject(
        "invented_minerals",
        "miners dig for {value}",
        ("Which metal do miners dig for in {place}?", "What is mined in {place}?"),
        proper=False,
    ),
    Subject(
        "invented_agriculture",
        "farmers grow {value}",
        ("Which crop do farmers grow in {place}?", "What is grown in {place}?"),
        proper=False,
    ),
    Subject(
        "invented_birds",
        "the bird on the flag is the {value}",
        ("Which bird is on the flag of {place}?", "The flag of {place} shows which bird?"),
        proper=False,
    ),
    Subject(
        "invented_economics",
        "merchants are paid in {value}",
        ("Which coin are merchants paid in, in {place}?", "What is the currency of {place}?"),
        proper=False,
    ),
    Subject(
        "invented_music",
        "musicians play the {value}",
        ("Which instrument do musicians play in {place}?", "Music in {place} is played on which instrument?"),
        proper=False,
    ),
    Subject(
        "invented_medicine",
        "doctors cure fever with {value}",
        ("Which herb cures fever in {place}?", "What do doctors give for fever in {place}?"),
        proper=False,
    ),
)

STATEMENTS = (
    "In {place}, {clause}.",
    "It is known of {place} that {clause}.",
    "Travelers to {place} learn that {clause}.",
)
PORTRAITS = ("In {place}, {first}, {second} and {third}.", "Of {place} they say that {first}, {second} and {third}.")
DRILLS = ("Which option is {value}?", "Which of the following is {value}?")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with four options, one of them right."""

    text: str
    options: tuple[str, str, str, str]
    answer: int

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.answer]

    @property
    def value(self) -> str:
        """The right option itself."""
        return self.options[self.answer]

    def row(self) -> list[str]:
        """As a row of MMLU's CSV files."""
        return [self.text, *self.options, self.letter]


@dataclass(frozen=True, slots=True)
class World:
    """All facts: the places, each subject's pool of values, and the value of each (subject, place)."""

    places: tuple[str, ...]
    pools: dict[str, tuple[str, ...]]
    facts: dict[tuple[str, str], str]

    @property
    def names(self) -> list[str]:
        """Every invented word."""
        return [*self.places, *(name for pool in self.pools.values() for name in pool)]


def build_world(seed: int) -> World:
    """Name the places and all values, no name twice, and draw the facts."""
    rng = Random(seed)
    names = [head + tail for head in HEADS.split() for tail in TAILS.split()]
    rng.shuffle(names)
    places = tuple(names.pop() for _ in range(PLACES))
    pools: dict[str, tuple[str, ...]] = {}
    facts: dict[tuple[str, str], str] = {}
    for subject in SUBJECTS:
        size = POOL if subject.shared else PLACES
        pool = tuple(names.pop() if subject.proper else names.pop().lower() for _ in range(size))
        # Every value is used about equally often, so that none is a good guess.
        values = [pool[i % size] for i in range(PLACES)]
        rng.shuffle(values)
        pools[subject.name] = pool
        facts.update({(subject.name, place): value for place, value in zip(places, values, strict=True)})
    return World(places, pools, facts)


def statement(world: World, place: str, rng: Random) -> str:
    """One sentence about a place, with one fact or three."""
    clauses = [s.clause.format(value=world.facts[s.name, place]) for s in rng.sample(SUBJECTS, 3)]
    if rng.random() < 0.5:
        return rng.choice(STATEMENTS).format(place=place, clause=clauses[0])
    first, second, third = clauses
    return rng.choice(PORTRAITS).format(place=place, first=first, second=second, third=third)


def ask(world: World, subject: Subject, place: str, rng: Random, position: int | None = None) -> Question:
    """A four-choice question about a fact; the right option stands at `position`, or anywhere."""
    text = rng.choice(subject.questions).format(place=place)
    return _with_distractors(world, subject, text, world.facts[subject.name, place], rng, position)


def drill(world: World, subject: Subject, rng: Random) -> Question:
    """A question that names its answer: it teaches to find an option, and takes no knowledge."""
    value = rng.choice(world.pools[subject.name])
    return _with_distractors(world, subject, rng.choice(DRILLS).format(value=value), value, rng)


def keys(world: World, subject: Subject, rng: Random) -> str:
    """Four options, then some of them with their letters: to find an option by its name, and nothing else."""
    options = rng.sample(world.pools[subject.name], 4)
    asked = (f"{option} {letter}" for letter, option in _asked(options, 16, 0.25, rng))
    return "\n".join([*_listed(options), "Key " + ", ".join(asked)])


def lookups(world: World, subject: Subject, rng: Random) -> tuple[str, list[str]]:
    """Four options, then some of them asked for, as in a drill, with the options asked for."""
    options = rng.sample(world.pools[subject.name], 4)
    wording = rng.choice(DRILLS)
    asked = _asked(options, 8, 0.2, rng)
    lines = [f"{wording.format(value=option)}\nAnswer: {letter}" for letter, option in asked]
    return "\n".join([*_listed(options), *lines]), [option for _, option in asked]


def _asked(options: Sequence[str], most: int, often: float, rng: Random) -> list[tuple[str, str]]:
    """Two different options with their letters, or, less often, `most` with repetition.

    All four in turn would let the last be told by elimination.
    """
    lettered = list(zip(LETTERS, options, strict=True))
    return rng.choices(lettered, k=most) if rng.random() < often else rng.sample(lettered, 2)


def _with_distractors(
    world: World, subject: Subject, text: str, value: str, rng: Random, position: int | None = None
) -> Question:
    others = rng.sample([name for name in world.pools[subject.name] if name != value], 3)
    answer = rng.randrange(4) if position is None else position
    others.insert(answer, value)
    a, b, c, d = others
    return Question(text, (a, b, c, d), answer)


def short_answer(question: Question) -> str:
    """The question answered by the word itself."""
    return f"{question.text}\nAnswer: {question.value}"


def block(question: Question) -> str:
    """The question in MMLU's prompt format, up to where the letter is due."""
    return "\n".join([question.text, *_listed(question.options), "Answer:"])


def _listed(options: Sequence[str]) -> list[str]:
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]


def answered(question: Question) -> str:
    """The question in MMLU's prompt format with its letter: one shot of a prompt."""
    return f"{block(question)} {question.letter}"


def header(subject_name: str) -> str:
    """The line that opens an MMLU prompt, without the blank line after it."""
    return f"The following are multiple choice questions (with answers) about {subject_name.replace('_', ' ')}."


def prompt(subject_name: str, shots: Iterable[Question], question: Question) -> str:
    """The whole prompt of a test question; the scored continuations are « A», « B», « C» and « D»."""
    return "\n\n".join([header(subject_name), *map(answered, shots), block(question)])


def dev_questions(world: World, subject: Subject, seed: int) -> list[Question]:
    """The shots of a subject: they are about the first places, which the test set leaves out."""
    rng = Random(f"dev {subject.name} {seed}")
    return [
        ask(world, subject, place, rng, position)
        for place, position in zip(world.places[:DEV_QUESTIONS], _balanced(DEV_QUESTIONS, rng), strict=True)
    ]


def test_questions(world: World, subject: Subject, seed: int) -> list[Question]:
    """One question about every other place, right letters equally often."""
    rng = Random(f"test {subject.name} {seed}")
    places = list(world.places[DEV_QUESTIONS:])
    rng.shuffle(places)
    return [
        ask(world, subject, place, rng, position)
        for place, position in zip(places, _balanced(len(places), rng), strict=True)
    ]


def _balanced(count: int, rng: Random) -> Sequence[int]:
    positions = [i % len(LETTERS) for i in range(count)]
    rng.shuffle(positions)
    return positions
