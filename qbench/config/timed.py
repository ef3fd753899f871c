"""What is timed: generations of a fixed length, and requests as they come to a server."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from qbench.config.backends import KVCache
from qbench.config.base import Measure
from qbench.config.requests import SLO, Length, Seconds
from qbench.config.trials import Trial


class TimedGeneration(Measure):
    """What is generated while the clock runs."""

    seq_len: int = Field(default=2048, ge=2, description="prompt plus new tokens")
    new_tokens: int = Field(default=128, ge=2, description="tokens generated; the first belongs to the prefill")
    decode: Literal["auto", "eager", "graph", "compiled"] = Field(
        default="auto",
        description="graph: the decode step as a CUDA graph; compiled: the step through torch.compile, on CUDA also a "
        "graph; auto: graph on CUDA, eager elsewhere",
    )
    kv_cache: KVCache = Field(
        default="16bit", description="int8, int4: transformers' quantized cache (HQQ), decoded eagerly"
    )
    cooldown_s: float = Field(default=0, ge=0, description="seconds of rest before the clock starts")

    def used_libraries(self, unit: str = "") -> tuple[str, ...]:
        return self.libraries if self.kv_cache == "16bit" else (*self.libraries, "hqq")

    @model_validator(mode="after")
    def _prompt_is_left(self) -> Self:
        if self.new_tokens >= self.seq_len:
            raise ValueError(f"new_tokens ({self.new_tokens}) must be less than seq_len ({self.seq_len})")
        return self

    @model_validator(mode="after")
    def _a_step_of_fixed_shapes_needs_a_cache_of_one_length(self) -> Self:
        if self.decode in ("graph", "compiled") and self.kv_cache != "16bit":
            raise ValueError(
                f"decode: {self.decode} needs a cache of one length, and kv_cache: {self.kv_cache} grows; use auto or "
                "eager"
            )
        return self

    @property
    def prompt_tokens(self) -> int:
        return self.seq_len - self.new_tokens


class ThroughputConfig(TimedGeneration):
    """Prefill and decode speed; `cooldown_s` is before each trial."""

    countable: ClassVar[tuple[str, ...]] = ("batch_sizes", "depths", "trials", "starts")
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 8, 32), min_length=1)
    trials: int = Field(default=3, ge=1, description="timed repetitions in a process; every one is a row")
    starts: int = Field(
        default=1, ge=1, description="fresh processes that each make all trials, in turn with the other cells"
    )
    warmup: int = Field(default=1, ge=0, description="repetitions before them that are not counted")
    depths: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0,),
        description="tokens in the cache before the prompt; the first is 0, whose speeds all other tables show",
    )
    max_retries_invalid: int = Field(
        default=0, ge=0, description="repetitions of a trial that other processes or throttling disturbed"
    )

    @field_validator("batch_sizes")
    @classmethod
    def _distinct_ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if list(sizes) != sorted(set(sizes)):
            raise ValueError("batch sizes must be distinct and ascending")
        return sizes

    @field_validator("depths")
    @classmethod
    def _ascending_from_0(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        if list(depths) != sorted({0, *depths}):
            raise ValueError("depths must begin with 0 and be distinct and ascending")
        return depths

    @model_validator(mode="after")
    def _only_a_plain_cache_is_filled(self) -> Self:
        if self.deepest and self.kv_cache != "16bit":
            raise ValueError(f"depths need a cache in 16 bit, not kv_cache: {self.kv_cache}; use a longer seq_len")
        return self

    def units(self) -> tuple[str, ...]:
        """Every trial, by start, depth, batch size and number."""
        every = product(range(self.starts), self.depths, self.batch_sizes, range(self.trials))
        return tuple(Trial(*one).unit for one in every)

    @property
    def deepest(self) -> int:
        """The most tokens before a prompt."""
        return self.depths[-1]


class SustainedConfig(TimedGeneration):
    """Decode speed over minutes without a pause: what is left when the machine is warm."""

    minutes: float = Field(default=10, gt=0, description="how long; the generation that is under way is finished")
    batch_size: int = Field(default=1, ge=1)
    window_s: float = Field(
        default=10, gt=0, description="seconds that a row covers, or one generation if it is longer"
    )


class LoadConfig(Measure):
    """A server under load: requests that come together, and what each of them waits for."""

    libraries: ClassVar[tuple[str, ...]] = ("httpx",)
    countable: ClassVar[tuple[str, ...]] = ("concurrencies", "rates", "find_rate")
    concurrencies: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 4, 16),
        description="closed loop: so many requests at a time, each followed by the next when it ends; none unless "
        "given where there are rates or find_rate",
    )
    rates: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(), description="open loop: requests a second, at random moments (Poisson), however many are waiting"
    )
    prompt_tokens: Length = Field(default=128, description="a number, {uniform: [a, b]} or {lognormal: {…}}")
    output_tokens: Length = Field(default=64, description="as prompt_tokens")
    requests: Path | None = Field(
        default=None,
        description="a file with a JSON object a line instead: `prompt` (text) or `prompt_tokens`, and `output_tokens`",
    )
    requests_per_level: int = Field(default=100, ge=1, description="that count; some before and after them do not")
    duration_s: Seconds = Field(default=60, description="seconds after which a level sends no more that count")
    timeout_s: Seconds = Field(default=60, description="seconds after which a request has failed")
    slo: SLO | None = Field(default=None, description="what an answer has to keep, for goodput and find_rate")
    find_rate: bool = Field(default=False, description="search for the highest rate that keeps the slo")
    attainment: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="share of the requests that have to keep the slo at that rate; beyond 0.9, a level needs hundreds "
        "of requests to tell",
    )
    repetitions: int = Field(default=3, ge=1, description="of a rate that find_rate cannot judge by one level")
    search_levels: int = Field(default=16, ge=1, description="levels that find_rate measures at most")

    @model_validator(mode="before")
    @classmethod
    def _rates_alone(cls, data: Any) -> Any:
        if isinstance(data, dict) and (data.get("rates") or data.get("find_rate")):
            return {"concurrencies": (), **data}
        return data

    @field_validator("concurrencies", "rates")
    @classmethod
    def _distinct_ascending(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if list(levels) != sorted(set(levels)):
            raise ValueError("levels must be distinct and ascending")
        return levels

    @model_validator(mode="after")
    def _there_is_something_to_measure(self) -> Self:
        if not (self.concurrencies or self.rates or self.find_rate):
            raise ValueError("give concurrencies, rates or find_rate: there is no load without them")
        if self.find_rate and self.slo is None:
            raise ValueError("find_rate: needs an objective to search by; add slo: {ttft: 0.5s, itl: 50ms}")
        return self

    @property
    def longest(self) -> int:
        """The most tokens of a prompt and its answer; 1 where a file has them."""
        lengths = (self.prompt_tokens, self.output_tokens)
        return 1 if self.requests else sum(one if isinstance(one, int) else one.most for one in lengths)

    def units(self) -> tuple[str, ...]:
        """Every level, and the search."""
        closed = (f"c{concurrency}" for concurrency in self.concurrencies)
        return (*closed, *(f"r{rate:g}" for rate in self.rates), *(["search"] if self.find_rate else []))

    def data_files(self, unit: str) -> dict[str, list[Path]]:
        return {"requests": [self.requests.expanduser()]} if self.requests else {}
