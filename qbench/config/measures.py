"""What can be measured: one section a module of `qbench.measure`, listed in `MeasureConfig`."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from qbench.config.backends import Backend, KVCache
from qbench.config.base import Strict
from qbench.config.requests import SLO, Length, Seconds
from qbench.config.trials import Trial

Reading = Literal["prefix", "stock"]
"""prefix reads what prompts share once; stock reads every prompt whole, as lm-evaluation-harness does."""


class Measure(Strict):
    """Settings of one measure."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that decide its figures, besides those of the backend."""
    countable: ClassVar[tuple[str, ...]] = ()
    """Settings that say only how many units there are: more of them change nothing that was measured."""
    repeats: ClassVar[tuple[str, ...]] = ()
    """Other measures whose settings it takes over."""

    def used_libraries(self) -> tuple[str, ...]:
        """`libraries`, and those that a setting brings in."""
        return self.libraries

    def units(self) -> tuple[str, ...]:
        """Names of the parts that are measured and kept by themselves; one without a name if it is kept whole."""
        return ("",)

    def data_files(self, unit: str) -> dict[str, list[Path]]:
        """By setting, the files of the user's that a unit reads: their content decides its figures, not their place."""
        return {}

    def hub_datasets(self) -> dict[str, str]:
        """By setting, the repositories of data on the hub that it reads."""
        return {}


class MemoryConfig(Measure):
    """Peak memory of the first forward after loading."""

    batch_size: int = Field(default=1, ge=1)
    seq_len: int = Field(default=512, ge=1, description="tokens in that forward")


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

    def used_libraries(self) -> tuple[str, ...]:
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


class MMLUConfig(Measure):
    """Four-choice accuracy by lm-evaluation-harness's own task."""

    libraries: ClassVar[tuple[str, ...]] = ("lm_eval", "datasets")
    num_fewshot: int = Field(default=5, ge=0, le=5)
    data: str | None = Field(
        default=None,
        description="folder in the published CSV layout, or `demo`; the hub's cais/mmlu unless given",
    )
    subjects: tuple[str, ...] | None = Field(default=None, min_length=1, description="only these; marks rows partial")
    limit: int | None = Field(default=None, ge=1, description="questions a subject; marks rows partial")
    batch_size: int = Field(default=8, ge=1)
    engine: Reading = Field(default="prefix", description="prefix reads shared examples once, stock for each question")

    @property
    def partial(self) -> bool:
        """Whether the figure covers less than the whole test set."""
        return self.limit is not None or self.subjects is not None

    def data_files(self, unit: str) -> dict[str, list[Path]]:
        if self.data in (None, "demo"):
            return {}
        folder = Path(self.data).expanduser()
        chosen = self.subjects or ("*",)
        patterns = [f"{split}/{name}_{split}.csv" for split in ("test", "dev") for name in chosen]
        return {"data": [file for pattern in patterns for file in folder.glob(pattern)]}

    def hub_datasets(self) -> dict[str, str]:
        return {"data": "cais/mmlu"} if self.data is None else {}


class NoiseFloorConfig(Measure):
    """MMLU once more, of 16-bit cells only: what a batch size alone changes is no effect of quantization."""

    repeats: ClassVar[tuple[str, ...]] = ("mmlu",)
    batch_size: int | None = Field(
        default=None, ge=1, description="of the second evaluation; half of measure.mmlu.batch_size unless given"
    )


class TasksConfig(Measure):
    """Accuracy by any task of lm-evaluation-harness that compares log-likelihoods, or what a model generates."""

    libraries: ClassVar[tuple[str, ...]] = ("lm_eval", "datasets")
    countable: ClassVar[tuple[str, ...]] = ("names",)
    names: tuple[str, ...] = Field(min_length=1, description="tasks, tags or groups, e.g. arc_easy, gsm8k, demo_qa")
    num_fewshot: int | None = Field(
        default=None, ge=0, description="examples before a question; the task's own if null"
    )
    limit: int | None = Field(default=None, ge=1, description="questions a task; marks rows partial")
    batch_size: int = Field(default=8, ge=1, description="sequences scored, or generated, side by side")
    engine: Reading = Field(default="prefix", description="prefix reads what prompts share once, stock each time")
    data: dict[str, Path] = Field(
        default={},
        description="by task: a folder with <split>.jsonl, .json, .csv or .parquet, or one file of its questions; "
        "the hub unless given",
    )

    def units(self) -> tuple[str, ...]:
        """Every name."""
        return self.names

    def data_files(self, unit: str) -> dict[str, list[Path]]:
        paths = {name: path.expanduser() for name, path in self.data.items() if unit in ("", name)}
        return {f"data.{name}": sorted(path.iterdir()) if path.is_dir() else [path] for name, path in paths.items()}

    @model_validator(mode="after")
    def _names_are_distinct_tasks(self) -> Self:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"names: {', '.join(twice)} is listed twice")
        if "mmlu" in self.names:
            raise ValueError("names: mmlu is a measure of its own; use measure.mmlu")
        stray = sorted(set(self.data) - set(self.names))
        if stray:
            raise ValueError(f"data: {', '.join(stray)} is not one of the names ({', '.join(self.names)})")
        return self


class GenerationsConfig(Measure):
    """Greedy continuations to read: what quantization makes of a text, beside what it makes of the figures."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(
            "The most important thing to know about the ocean is that",
            "Once upon a time, in a village at the foot of a mountain,",
            "To make a good cup of tea, you first",
            "The three primary colors are",
            "A short letter of thanks to a neighbor:\n\nDear",
        ),
        min_length=1,
    )
    new_tokens: int = Field(default=32, ge=1, description="tokens a continuation")


class PerplexityConfig(Measure):
    """Perplexity of a text, and how far the predictions are from those of the 16-bit cell."""

    text: str | None = Field(
        default=None,
        description="a text file, `demo`, or `wikitext2` (hub, test set); the model's natural choice unless given",
    )
    window: int | None = Field(
        default=None, ge=2, description="tokens a window; 2048 unless given, or the model's context if that is shorter"
    )
    limit: int | None = Field(default=None, ge=1, description="windows; marks rows partial")
    divergence: bool = Field(default=True, description="compare every token's prediction with the fp16 cell's")
    top_k: int = Field(
        default=64, ge=1, description="of the fp16 cell's predictions kept a token, beside the rest's sum"
    )

    @property
    def partial(self) -> bool:
        """Whether the figure covers less than the whole text."""
        return self.limit is not None


class MeasureConfig(Strict):
    """What is measured: every field is the name of a module of `qbench.measure`; None is not measured.

    In a YAML file a key without a value, or with `true`, means the defaults of its measure, and `false` means None.
    """

    memory: MemoryConfig = MemoryConfig()
    throughput: ThroughputConfig | None = None
    mmlu: MMLUConfig | None = None
    tasks: TasksConfig | None = None
    generations: GenerationsConfig | None = None
    perplexity: PerplexityConfig | None = None
    noise_floor: NoiseFloorConfig | None = None
    sustained: SustainedConfig | None = None
    load: LoadConfig | None = None

    @property
    def starts(self) -> int:
        """Processes in which each cell is measured, one after another."""
        return self.throughput.starts if self.throughput else 1

    def of(self, backend: Backend) -> dict[str, Measure]:
        """What is measured of a cell, by name, in order."""
        chosen: dict[str, Measure] = {name: settings for name, settings in self if settings is not None}
        if not backend.is_reference:
            chosen.pop("noise_floor", None)
        return {name: _over(settings, backend.kv_cache) for name, settings in chosen.items()}


def _over(settings: Measure, kv_cache: KVCache) -> Measure:
    """The settings, for a cell whose own keys and values are in `kv_cache`, whatever the measure says of others."""
    if kv_cache == "16bit" or not isinstance(settings, TimedGeneration):
        return settings
    return settings.model_copy(update={"kv_cache": kv_cache})
