"""The rows that a worker writes: one class a table, one field a column, in order."""

from __future__ import annotations

from typing import Literal, TypedDict

from pydantic import BaseModel, ConfigDict

Status = Literal["ok", "oom", "error", "crashed", "timeout", "unavailable"]


class Identity(TypedDict):
    """The columns that say whose row it is."""

    run: str
    model: str
    backend: str
    label: str
    host: str


class Row(BaseModel):
    """One observation of one cell. The field order is the column order. Seconds and bytes; a missing value is None."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    run: str
    model: str
    backend: str
    """Kind of the backend: fp16, int4, …"""
    label: str
    """The cell, unique in its run."""
    host: str | None = None
    """Name of the machine that measured it."""


class CellRow(Row):
    """One (model, backend) pair, and what loading it cost."""

    bits: int | None = None
    """Of a weight's code; None where a server holds the weights."""
    group_size: int | None = None
    status: Status
    error: str | None = None
    device: str | None = None
    dtype: str | None = None
    kernel: str | None = None
    decode_mode: str | None = None
    threads: int | None = None
    quantized_layers: int | None = None
    expected_layers: int | None = None
    lm_head_bits: int | None = None
    load_s: float | None = None
    quantize_s: float | None = None
    weight_bytes: int | None = None
    effective_bits_per_weight: float | None = None
    load_peak_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_memory_per_device: str | None = None
    """On CUDA, bytes of each GPU that holds weights, `;` between them; `peak_memory_bytes` is their sum."""
    peak_rss_bytes: int | None = None
    calibration_sha256: str | None = None
    cached: bool | None = None
    """Whether the quantized weights came from the cache: quantize_s is of the time they were made. None without it."""
    read_bytes_per_s: float | None = None
    """How fast the device moved bytes of its memory just before loading: reading on a CPU, see
    `qbench.machine.bandwidth.of_host`; copying on a GPU, see `qbench.engine.torch.bandwidth.copy_bytes_per_s`."""
    kv_cache: str | None = None
    """What all of its keys and values are kept in: 16bit, int8 or int4. Where it is 16bit, `throughput.csv` may say
    that speed was measured over another. None in runs of versions that knew no such cells."""
    unsupported: str | None = None
    """Measures that the cell's engine cannot take, with the reasons."""
    failed: str | None = None
    """Measures that ended with an error, with the reasons; the next run takes them again. The cell itself is ok unless
    all of them failed."""


class MemoryRow(Row):
    """Peak memory of the first forward after loading; joined into `cells.csv`."""

    batch_size: int
    seq_len: int
    peak_memory_bytes: int
    peak_memory_per_device: str | None = None


class ThroughputRow(Row):
    """One timed generation."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    decode_mode: str
    trial: int
    status: Status
    error: str | None = None
    ttft_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    itl_p50_s: float | None = None
    itl_p95_s: float | None = None
    peak_memory_bytes: int | None = None
    # What the trial ran under, see `qbench.machine.conditions.Conditions`.
    validity: str | None = None
    foreign_cpu: float | None = None
    steal: float | None = None
    cpu_mhz: float | None = None
    gpu_sm_mhz: int | None = None
    gpu_mem_mhz: int | None = None
    gpu_temperature_c: int | None = None
    gpu_power_w: float | None = None
    throttle_reasons: str | None = None
    foreign_gpu_pids: int | None = None
    attempts: int | None = None
    """Times that the trial was made; the row is that of the last."""
    compile_s: float | None = None
    """Seconds of compiling the decode step of this batch size, before the first trial; None in other decode modes."""
    kv_cache: str | None = None
    """16bit, int8 or int4."""
    start: int | None = None
    """Which process of the cell made the trial, from 0 on; None in tables of older versions, which knew one."""
    depth: int | None = None
    """Tokens in the cache before the prompt; None in tables of older versions, where it was empty."""
    energy_j: float | None = None
    """Of the whole generation, prefill and all sequences; None where no counter tells, see `qbench.machine.energy`."""
    energy_source: str | None = None
    """nvml: the boards of the GPUs that hold weights; rapl: the packages of all processors."""


class SustainedRow(Row):
    """A window of generations that follow each other without a pause, and what it ran under, as in `ThroughputRow`."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    decode_mode: str
    t_s: float
    """End of the window, since the first began."""
    generations: int
    """Whole generations in the window."""
    tokens_per_s: float
    """Decode speed: batch_size × tokens after the first of each generation ÷ their time."""
    validity: str | None = None
    foreign_cpu: float | None = None
    steal: float | None = None
    cpu_mhz: float | None = None
    gpu_sm_mhz: int | None = None
    gpu_mem_mhz: int | None = None
    gpu_temperature_c: int | None = None
    gpu_power_w: float | None = None
    throttle_reasons: str | None = None
    foreign_gpu_pids: int | None = None
    kv_cache: str | None = None


class AccuracyRow(Row):
    """One subject of one task."""

    task: str
    subject: str = ""
    """Empty for a task without subjects."""
    num_fewshot: int
    n: int
    correct: int | None = None
    """None where a question is not simply right or wrong, as in truthfulqa_mc2."""
    accuracy: float
    stderr: float | None = None
    partial: bool
    wall_s: float | None = None
    """Wall time of the whole task, the same in each of its rows."""
    forward_tokens: int | None = None
    """Tokens that the model read for the whole task, padding left out; the same in each of its rows."""
    stock_tokens: int | None = None
    """What lm-evaluation-harness's own model code reads for it."""
    shared_prefixes: bool | None = None
    """Whether what prompts have in common was read once; not where the model gives other answers then."""
    truncated: int | None = None
    """Questions whose prompt lost its beginning, with it some of the examples, to the model's context."""
    asked_sha256: str | None = None
    """Of the prompts with their examples, choices and right answers, in order, as lm-evaluation-harness made them."""
    metric: str | None = None
    """What the accuracy is, in lm-evaluation-harness's words: a metric and its filter, `exact_match,strict-match`. None
    in runs of versions that knew only `acc,none`."""


class NoiseRow(Row):
    """The cell's MMLU evaluated again at another batch size: what numerics alone move."""

    batch_size: int
    repeat_batch_size: int
    n: int
    changed_answers: int
    """Questions with another prediction, right or wrong."""
    right_to_wrong: int
    wrong_to_right: int
    accuracy_delta: float
    """Second evaluation − first, a fraction."""
    logprob_delta_max: float
    """Largest |difference| of a choice's log-probability, in nats."""
    partial: bool
    wall_s: float


class PerplexityRow(Row):
    """A text of a cell. Standard errors are over windows, see `qbench.analysis.formulas.mean_of_windows`.

    The divergence columns compare with the 16-bit cell, token by token, in nats (see `qbench.measure.divergence`). They
    are empty in the 16-bit cell's own row, where there is nothing to compare.
    """

    dataset: str
    window: int
    """Tokens."""
    n_tokens: int
    """Tokens predicted: all but the first of each window."""
    perplexity: float
    """exp(nll_mean)."""
    nll_mean: float
    """Mean of -log p(token), in nats."""
    nll_stderr: float | None = None
    kl_mean: float | None = None
    """Mean of KL(16-bit || this cell): at least so much, see `tail_mass_mean`."""
    kl_stderr: float | None = None
    kl_p99: float | None = None
    """99th percentile over tokens."""
    top1_agreement: float | None = None
    """Share of the tokens after which the 16-bit cell's most probable token is this cell's, too."""
    top1_stderr: float | None = None
    delta_logprob_mean: float | None = None
    """Mean of log p(token) less the 16-bit cell's: the perplexities' ratio is exp(-delta_logprob_mean)."""
    delta_logprob_stderr: float | None = None
    top_k: int | None = None
    """Tokens of the 16-bit cell's predictions that KL looks at one by one."""
    partial: bool
    wall_s: float
    tail_mass_mean: float | None = None
    """Mean probability that the 16-bit cell gives to all other tokens: KL does not see how it moves among them."""


CUT = "cut"
"""The error of a request that was under way when the last one that counts had ended."""


class RequestRow(Row):
    """A request of `measure.load`. Moments are seconds since its level began."""

    level: str
    """`c4`: 4 at a time; `r0.5`: half a request a second; `search/3`: the third level of the search."""
    number: int
    """In the order in which they were sent."""
    phase: Literal["warmup", "counted", "tail"]
    """Those before and after the counted ones only keep up the load."""
    planned_s: float
    """When it was to be sent."""
    sent_s: float
    ended_s: float
    client_delay_s: float
    """What the client took: from the planned moment until the request had left, and handling what came."""
    asked_tokens: int
    prompt_tokens: int | None = None
    """By the server's word."""
    output_tokens: int
    error: str | None = None
    """The kind of error; None of a request that was answered."""
    detail: str | None = None
    token_s: tuple[float, ...] = ()
    """When each piece of text came, since the request was sent; most servers send a piece a token."""


class LoadRow(Row):
    """A level of `measure.load`: figures of its requests, see `qbench.analysis.load`. Empty where none was answered."""

    level: str
    mode: Literal["closed", "open", "search"]
    concurrency: int | None = None
    """Requests at a time of a closed loop."""
    rate: float | None = None
    """Requests a second of an open loop."""
    status: Status
    error: str | None = None
    prompt_tokens_mean: float | None = None
    output_tokens_mean: float | None = None
    requests: int
    """Counted ones."""
    answered: int
    """Of them."""
    errors: str | None = None
    """Kinds of errors of the counted requests with their numbers: `timeout 3; http_500 1`."""
    window_s: float | None = None
    """From the first counted request until the last of them had ended."""
    in_flight_mean: float | None = None
    """Requests under way at a moment, mean over the window."""
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p90_s: float | None = None
    ttft_p95_s: float | None = None
    ttft_p95_low_s: float | None = None
    ttft_p95_high_s: float | None = None
    ttft_p99_s: float | None = None
    itl_p50_s: float | None = None
    itl_p90_s: float | None = None
    itl_p95_s: float | None = None
    itl_p99_s: float | None = None
    e2e_p50_s: float | None = None
    e2e_p90_s: float | None = None
    e2e_p95_s: float | None = None
    e2e_p99_s: float | None = None
    slo_ttft_s: float | None = None
    slo_itl_s: float | None = None
    met: int | None = None
    """Counted requests that kept the objective; None without one."""
    attainment: float | None = None
    """met ÷ requests, and its exact interval."""
    attainment_low: float | None = None
    attainment_high: float | None = None
    goodput_per_s: float | None = None
    """Requests a second that were answered and kept the objective, and its interval over slices of the window."""
    goodput_low_per_s: float | None = None
    goodput_high_per_s: float | None = None
    client_delay_p95_s: float
    loop_lag_p95_s: float
    """By how much the client's event loop came late."""
    validity: str | None = None
    foreign_cpu: float | None = None
    steal: float | None = None


class GenerationRow(Row):
    """How a cell goes on with a prompt, greedily."""

    prompt: str
    text: str
    """The continuation alone."""
    token_ids: tuple[int, ...]
    """Its tokens."""


TABLES: dict[str, type[Row]] = {
    "cells": CellRow,
    "throughput": ThroughputRow,
    "sustained": SustainedRow,
    "accuracy": AccuracyRow,
    "noise": NoiseRow,
    "perplexity": PerplexityRow,
    "load": LoadRow,
}
"""The CSV files of a run, by stem."""

LINES: dict[str, type[Row]] = {"generations": GenerationRow}
"""The files of a run with a JSON object a line, by stem: rows with text."""

_ROW_TYPES: tuple[type[Row], ...] = (MemoryRow, RequestRow, *TABLES.values(), *LINES.values())
ROW_TYPES = {row_type.__name__: row_type for row_type in _ROW_TYPES}
"""Every row that a worker may write, by name."""
