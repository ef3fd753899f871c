"""What a run will do and need, before anything is loaded: its cells in order, predicted memory and decode speed.

The answer of `qbench plan`. Everything comes from the configuration, the model's config.json and what is known of the
device; see `qbench.plan.memory` for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qbench.config import (
    Backend,
    PerplexityConfig,
    RunConfig,
    SustainedConfig,
    ThroughputConfig,
    TimedGeneration,
    needles,
    resolve,
)
from qbench.config.target import Target
from qbench.errors import QbenchError
from qbench.machine import bandwidth
from qbench.machine.bandwidth import Bandwidth
from qbench.machine.environment import Environment
from qbench.model.architecture import Architecture, of_model
from qbench.model.kv_cache import attended_tokens, recent_tokens
from qbench.plan import cells as plan
from qbench.plan import questions
from qbench.plan.engines import predict
from qbench.plan.memory import Prediction

MARGIN = 0.10
"""Of a predicted peak: as far as a prediction may be off."""

RESERVE_BYTES = 512 << 20
"""What the interpreter and its libraries, or CUDA's context, take beside what torch allocates."""

Fit = Literal["yes", "tight", "no"]
"""tight: the predicted peak fits, but not with `MARGIN` and `RESERVE_BYTES`."""


class Frozen(BaseModel):
    """A part of a forecast."""

    model_config = ConfigDict(frozen=True)


class BatchForecast(Frozen):
    """Generations at one batch size."""

    measure: str
    """throughput or sustained."""
    batch_size: int
    depth: int = 0
    """Tokens before the prompt, at which bytes are predicted: the most that are asked for."""
    cache_bytes: int
    peak_memory_bytes: int
    decode_tokens_per_s: float | None
    """The ceiling that reading weights and cache sets; None where the bandwidth is not known."""
    decode_s: float | None
    """At least so long do all of its decode steps take, warm-up included; prefill comes on top."""
    fits: Fit | None


class CellForecast(Frozen):
    """One cell."""

    label: str
    backend: str
    units: int
    """What is measured and kept by itself, besides loading."""
    weight_bytes: int | None = None
    """This, and all that follows, is None of a cell that is not predicted: a server."""
    bits_per_weight: float | None = None
    load_bytes: int | None = None
    """About what loading takes of the host; None on CUDA, where it is not predicted."""
    load_fits: Fit | None = None
    peak_memory_bytes: int | None = None
    """Of `measure.memory`'s forward."""
    fits: Fit | None = None
    perplexity_bytes: int | None = None
    perplexity_fits: Fit | None = None
    needles_bytes: int | None = None
    """Of the longest prompts of `measure.tasks.context_lengths`; None where no needle task is measured."""
    needles_fits: Fit | None = None
    batches: tuple[BatchForecast, ...] = ()


class Forecast(Frozen):
    """A run, predicted."""

    run: str
    model: str
    parameters: int
    device: str
    dtype: str
    memory_bytes: int | None
    memory_source: str
    bandwidth_bytes_per_s: float | None
    bandwidth_source: str
    measures: dict[str, str]
    """By name, their settings in words."""
    cells: tuple[CellForecast, ...]
    """In the order in which they run."""
    problems: tuple[str, ...]
    """Why the run would be refused on this machine."""
    questions: dict[str, int | None] = {}
    """By `mmlu` or unit of `measure.tasks`, see `qbench.plan.questions.count_all`."""
    unpredicted: tuple[str, ...] = ()
    """Measures whose memory depends on prompts that are not known before they run."""
    starts: int = 1
    """Processes in which each cell is measured."""
    reference_bytes: int | None = None
    """On disk, for each window of a text: the 16-bit cell's whole predictions; None unless `divergence` is full."""
    compared: int = 0
    """Cells whose accuracy is compared with a 16-bit cell's."""


def make(
    config: RunConfig,
    machine: Environment,
    *,
    only: Sequence[str] = (),
    memory_bytes: int | None = None,
    rate: float | None = None,
) -> Forecast:
    """Predict a run on this machine, or on one of so much memory and so many bytes a second.

    Raises:
        QbenchError: `only` names no cell, a checkpoint is not there, or the model is not known here (see
            `qbench.model.architecture.of_model`).
    """
    chosen = plan.select(config, only)
    config = plan.resolve(config)
    model = of_model(config.model)
    target = plan.target_of(config, machine)
    memory, memory_source = _memory(target, machine, memory_bytes)
    speed = _bandwidth(target, machine, rate)
    cells = [cell for cell in config.backends if cell.label in {backend.label for backend in chosen}]
    return Forecast(
        run=config.name,
        model=config.model.name,
        parameters=model.parameters,
        device=target.device,
        dtype=resolve.dtype(config.dtype, target.device),
        memory_bytes=memory,
        memory_source=memory_source,
        bandwidth_bytes_per_s=speed.bytes_per_s if speed else None,
        bandwidth_source=speed.source if speed else "not known of this device; give --bandwidth",
        measures=_settings(config),
        cells=tuple(
            _cell(config, cell, predict(model, cell, target), memory, speed) for cell in plan.shuffle(config, cells)
        ),
        problems=_problems(config, machine),
        questions=questions.count_all(config.measure),
        unpredicted=_unpredicted(config),
        reference_bytes=_reference_bytes(config, model),
        starts=config.measure.starts,
        compared=len(cells) - 1 if any(cell.is_reference for cell in cells) else 0,
    )


def _window(config: PerplexityConfig, model: Architecture) -> int:
    return config.window or min(2048, model.max_position_embeddings or 2048)


def _reference_bytes(config: RunConfig, model: Architecture) -> int | None:
    settings = config.measure.perplexity
    if settings is None or settings.divergence != "full" or config.reference is None:
        return None
    return 4 * model.vocab_size * (_window(settings, model) - 1)


def fit(peak_bytes: int, memory_bytes: int | None) -> Fit | None:
    """Whether a predicted peak fits; None where the memory is not known."""
    if memory_bytes is None:
        return None
    if peak_bytes * (1 + MARGIN) + RESERVE_BYTES <= memory_bytes:
        return "yes"
    return "tight" if peak_bytes <= memory_bytes else "no"


def _memory(target: Target, machine: Environment, given: int | None) -> tuple[int | None, str]:
    if given is not None:
        return given, "given"
    if target.device == "cpu":
        return machine.memory_bytes, "this machine's"
    if machine.gpus:
        used = machine.gpus if target.device_map_auto else machine.gpus[:1]
        return sum(gpu.memory_bytes for gpu in used), " + ".join(gpu.name for gpu in used)
    return None, "no GPU is visible here; give --memory"


def _bandwidth(target: Target, machine: Environment, given: float | None) -> Bandwidth | None:
    if given is not None:
        return Bandwidth(given, "given")
    if target.device == "cpu":
        return bandwidth.of_host()
    return bandwidth.of_gpu(machine.gpus[0].name) if machine.gpus else None


def _problems(config: RunConfig, machine: Environment) -> tuple[str, ...]:
    try:
        plan.preflight(config, machine)
        plan.check_lengths(config)
    except QbenchError as error:
        return (str(error),)
    return ()


def _unpredicted(config: RunConfig) -> tuple[str, ...]:
    measures = config.measure
    known = {"tasks": measures.tasks is None or not measures.tasks.stored}
    names = ("mmlu", "tasks", "noise_floor", "generations")
    return tuple(name for name in names if getattr(measures, name) is not None and not known.get(name))


def _settings(config: RunConfig) -> dict[str, str]:
    dumps = {name: one.model_dump(mode="json", exclude_none=True) for name, one in config.measure if one is not None}
    return {name: ", ".join(f"{key} {value}" for key, value in values.items()) for name, values in dumps.items()}


def _cell(
    config: RunConfig, cell: Backend, predicted: Prediction | None, memory: int | None, speed: Bandwidth | None
) -> CellForecast:
    units = sum(len(one.units()) for name, one in config.measure.of(cell).items() if name != "memory")
    if predicted is None:
        return CellForecast(label=cell.label, backend=cell.kind, units=units)
    measured, weights = config.measure.memory, predicted.weights()
    kv_cache = predicted.backend.kv_cache
    peak = predicted.generation_bytes(measured.batch_size, measured.seq_len, measured.seq_len, kv_cache)
    load = predicted.load_bytes() if predicted.target.device == "cpu" else None
    perplexity = None
    if config.measure.perplexity:
        perplexity = predicted.perplexity_bytes(_window(config.measure.perplexity, predicted.model))
    tasks, longest = config.measure.tasks, None
    if tasks and tasks.made:
        tokens = max(tasks.lengths)
        longest = predicted.completion_bytes(tasks.batch_size, tokens - needles.NEW_TOKENS, tokens, kv_cache)
    return CellForecast(
        label=cell.label,
        backend=cell.kind,
        units=units,
        weight_bytes=weights.total,
        bits_per_weight=weights.bits_per_weight,
        load_bytes=load,
        load_fits=None if load is None else fit(load, memory),
        peak_memory_bytes=peak,
        fits=fit(peak, memory),
        perplexity_bytes=perplexity,
        perplexity_fits=None if perplexity is None else fit(perplexity, memory),
        needles_bytes=longest,
        needles_fits=None if longest is None else fit(longest, memory),
        batches=tuple(_batches(config, predicted, memory, speed)),
    )


def _batches(
    config: RunConfig, predicted: Prediction, memory: int | None, speed: Bandwidth | None
) -> Iterator[BatchForecast]:
    own = config.measure.of(predicted.backend)
    throughput, sustained = own.get("throughput"), own.get("sustained")
    timed: list[tuple[str, TimedGeneration, int, int]] = []
    if isinstance(throughput, ThroughputConfig):
        repeats = throughput.starts * len(throughput.depths) * (throughput.warmup + throughput.trials)
        timed += [("throughput", throughput, size, repeats) for size in throughput.batch_sizes]
    if isinstance(sustained, SustainedConfig):  # a clock ends it
        timed.append(("sustained", sustained, sustained.batch_size, 0))
    for name, settings, size, repeats in timed:
        prompt, depth = settings.prompt_tokens, getattr(settings, "deepest", 0)
        peak = (
            predicted.filled_generation_bytes(size, prompt, settings.seq_len, depth)
            if depth
            else predicted.generation_bytes(size, prompt, settings.seq_len, settings.kv_cache)
        )
        rate = None if speed is None else ceiling(predicted, settings, size, speed)
        yield BatchForecast(
            measure=name,
            batch_size=size,
            depth=depth,
            cache_bytes=predicted.generation_cache_bytes(
                size, depth + prompt, depth + settings.seq_len, settings.kv_cache
            ),
            peak_memory_bytes=peak,
            decode_tokens_per_s=rate,
            decode_s=repeats * size * (settings.new_tokens - 1) / rate if rate and repeats else None,
            fits=fit(peak, memory),
        )


def ceiling(predicted: Prediction, timed: TimedGeneration, batch_size: int, speed: Bandwidth) -> float:
    """Decode tokens/s that a device of this bandwidth cannot exceed.

    A step reads the keys and values of the filled part of the cache, half of the new tokens on average; a graph or a
    compiled step, whose cache has one length, all of it. GPUs that share a model's layers compute one after another.
    """
    target = predicted.target
    mode = resolve.decode_mode(
        timed.decode, target.device, device_map_auto=target.device_map_auto, kv_cache=timed.kv_cache
    )
    if target.device == "cuda" and not predicted.backend.capturable:
        mode = "eager"
    return predicted.decode_tokens_per_s(
        batch_size,
        attended_tokens(timed.prompt_tokens, timed.new_tokens, mode),
        speed.bytes_per_s,
        speed.flops if target.value_bytes == 2 else None,
        timed.kv_cache,
        recent_tokens(timed.new_tokens),
    )
