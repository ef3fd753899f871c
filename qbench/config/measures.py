"""What can be measured: one section a module of `qbench.measure`, listed in `MeasureConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from qbench.config import needles
from qbench.config.backends import Backend, KVCache
from qbench.config.base import Measure, Strict
from qbench.config.timed import LoadConfig, SustainedConfig, ThroughputConfig, TimedGeneration

Reading = Literal["prefix", "stock"]
"""prefix reads what prompts share once; stock reads every prompt whole, as lm-evaluation-harness does."""


class MemoryConfig(Measure):
    """Peak memory of the first forward after loading."""

    batch_size: int = Field(default=1, ge=1)
    seq_len: int = Field(default=512, ge=1, description="tokens in that forward")


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
    countable: ClassVar[tuple[str, ...]] = ("names", "context_lengths")
    names: tuple[str, ...] = Field(min_length=1, description="tasks, tags or groups, e.g. arc_easy, gsm8k, demo_qa")
    context_lengths: tuple[Annotated[int, Field(ge=2 * needles.NEW_TOKENS)], ...] | None = Field(
        default=None,
        min_length=1,
        description="tokens of prompt and answer at which needle tasks (niah_single_1, …) are measured, each by "
        "itself; 4096 unless given",
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="examples before a question; the task's own if null; none in needle tasks"
    )
    limit: int | None = Field(default=None, ge=1, description="questions a task; marks rows partial")
    batch_size: int = Field(default=8, ge=1, description="sequences scored, or generated, side by side")
    engine: Reading = Field(default="prefix", description="prefix reads what prompts share once, stock each time")
    data: dict[str, Path] = Field(
        default={},
        description="by task: a folder with <split>.jsonl, .json, .csv or .parquet, or one file of its questions; "
        "the hub unless given",
    )

    @property
    def made(self) -> tuple[str, ...]:
        """The names of needle tasks, whose prompts are made here."""
        return tuple(name for name in self.names if name in needles.NEEDLES)

    @property
    def stored(self) -> tuple[str, ...]:
        """The other names, whose questions are files."""
        return tuple(name for name in self.names if name not in needles.NEEDLES)

    def used_libraries(self, unit: str = "") -> tuple[str, ...]:
        needed = needles.split(unit)[1] if unit else self.made
        return (*self.libraries, *(needles.LIBRARIES if needed else ()))

    def units(self) -> tuple[str, ...]:
        """Every name; of a needle task, one for each length."""
        return tuple(
            unit
            for name in self.names
            for unit in ([needles.unit(name, n) for n in self.lengths] if name in self.made else [name])
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The context lengths of needle tasks."""
        return self.context_lengths or (4096,)

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
        if set(self.data) & set(self.made):
            made = ", ".join(name for name in self.made if name in self.data)
            raise ValueError(f"data: {made} makes its own prompts; leave it out of data")
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError("context_lengths: a length is listed twice")
        if self.context_lengths and not self.made:
            raise ValueError(f"context_lengths: names has no needle task (they are: {', '.join(needles.NEEDLES)})")
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
    divergence: bool | Literal["full"] = Field(
        default=True,
        description="compare every token's prediction with the fp16 cell's; full: over the whole vocabulary, however "
        "much that keeps on disk, 4 bytes a token and word",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="words of the fp16 cell's predictions kept a token, beside the rest's sum; unless given, all words "
        "where they take at most 256 MiB, else 64",
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
