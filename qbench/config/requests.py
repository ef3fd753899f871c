"""What requests to a server look like, and what is asked of their answers: lengths, and a service-level objective."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from qbench.config.base import Strict
from qbench.errors import QbenchError

UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0}
"""Seconds, by the units in which a time may be written."""


def seconds(value: Any) -> Any:
    """`0.5s`, `50ms` or a number of seconds as seconds; anything else as it is, for pydantic to refuse.

    Raises:
        ValueError: a text that is no time.
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", value)
    if not found or found[2] not in UNITS_S:
        raise ValueError(f"{value!r} is no time; write it with its unit, e.g. 0.5s or 50ms")
    return float(found[1]) * UNITS_S[found[2]]


Seconds = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str), Field(gt=0)]


class SLO(Strict):
    """A service-level objective: what an answer has to keep to be of use to who waits for it."""

    ttft: Seconds | None = Field(default=None, description="longest time to the first token: seconds, or e.g. 500ms")
    itl: Seconds | None = Field(
        default=None, description="longest mean time between the tokens of an answer: seconds, or e.g. 50ms"
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.ttft is None and self.itl is None:
            raise ValueError("give ttft, itl or both, e.g. {ttft: 0.5s, itl: 50ms}")
        return self

    def met(self, ttft_s: float, itl_s: float | None) -> bool:
        """Whether an answer keeps it; one of a single token has no time between tokens (None)."""
        first = self.ttft is None or ttft_s <= self.ttft
        return first and (self.itl is None or itl_s is None or itl_s <= self.itl)

    def __str__(self) -> str:
        """As the command line takes it: `ttft=0.5s,itl=0.05s`."""
        parts = {"ttft": self.ttft, "itl": self.itl}
        return ",".join(f"{name}={value:g}s" for name, value in parts.items() if value is not None)


class Uniform(Strict):
    """Numbers of tokens between two, both included, each as likely."""

    uniform: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform: the smaller number comes first, as in [{self.uniform[1]}, {self.uniform[0]}]")
        return self

    @property
    def most(self) -> int:
        """The largest number that can be drawn."""
        return self.uniform[1]


class Spread(Strict):
    """A log-normal distribution, cut off."""

    median: float = Field(ge=1, description="half of the numbers are below it")
    sigma: float = Field(gt=0, le=5, description="standard deviation of the numbers' natural logarithm")
    max: int = Field(ge=1, description="larger numbers become this one")

    @model_validator(mode="after")
    def _median_is_possible(self) -> Self:
        if self.median > self.max:
            raise ValueError(f"median ({self.median:g}) must not be above max ({self.max})")
        return self


class Lognormal(Strict):
    """Numbers of tokens as chats have them: many short ones, few long ones."""

    lognormal: Spread

    @property
    def most(self) -> int:
        """The largest number that can be drawn."""
        return self.lognormal.max


def _shape(value: Any) -> str:
    """Which kind of length was written, so that errors speak of that one alone."""
    if isinstance(value, Lognormal) or (isinstance(value, dict) and "lognormal" in value):
        return "lognormal"
    return "uniform" if isinstance(value, Uniform | dict) else "number"


Length = Annotated[
    Annotated[int, Field(ge=1), Tag("number")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Lognormal, Tag("lognormal")],
    Discriminator(_shape),
]
"""Tokens: a number, `{uniform: [a, b]}`, or `{lognormal: {median: …, sigma: …, max: …}}`."""


class Asked(Strict):
    """A line of a file of requests."""

    prompt: str | None = Field(default=None, min_length=1)
    prompt_tokens: int | None = Field(default=None, ge=1, description="of a random prompt, in place of `prompt`")
    output_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.prompt_tokens is None):
            raise ValueError("give either prompt or prompt_tokens")
        return self


def read_requests(path: Path) -> tuple[Asked, ...]:
    """The requests of a JSONL file, in order.

    Raises:
        QbenchError: the file cannot be read, has no line, or a line is no request.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QbenchError(f"measure.load.requests: {path} cannot be read as text ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Asked.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise QbenchError(
                f"measure.load.requests: {path}, line {number}: {where + ': ' if where else ''}{first['msg']}; write "
                'e.g. {"prompt_tokens": 200, "output_tokens": 50}'
            ) from error
    if not found:
        raise QbenchError(f"measure.load.requests: {path} has no request")
    return tuple(found)
