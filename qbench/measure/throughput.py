"""Prefill and decode speed at fixed batch sizes and lengths; every trial is a row that says what it ran under."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import NamedTuple

from qbench.analysis import formulas
from qbench.config import ThroughputConfig
from qbench.config.trials import Trial
from qbench.engine.base import Capability, Engine, Generation, Ints, Session
from qbench.errors import describe_fault
from qbench.machine.conditions import Conditions, Sampler
from qbench.machine.energy import Meter
from qbench.measure.base import Context, check_length, make_meter, make_sampler, random_prompt
from qbench.records.rows import Status, ThroughputRow

NEEDS = frozenset({Capability.GENERATE})
"""Capabilities without which a cell's measure is unsupported."""


def measure(
    engine: Engine,
    config: ThroughputConfig,
    context: Context,
    sampler: Sampler | None = None,
    meter: Meter | None = None,
) -> None:
    """Emit a `ThroughputRow` for every depth, batch size and trial of a start.

    When a batch does not fit into memory it gets one row with status oom, and so does every larger one, there and at
    greater depths. `sampler` looks at the machine around each trial, and `meter` counts its energy; by default the real
    ones.
    """
    check_length(engine, config.seq_len, "measure.throughput.seq_len")
    depths = config.depths if Capability.DEPTH in engine.can else (0,)
    check_length(engine, depths[-1] + config.seq_len, "measure.throughput.depths")
    trials = _Trials(engine, config, context, sampler or make_sampler(engine), meter or make_meter(engine))
    sizes, words = config.batch_sizes, ""
    for depth in depths:
        for size in config.batch_sizes:
            if size not in sizes:
                trials.fail(depth, size, "oom", words)
                continue
            try:
                trials.run(depth, size)
            except Exception as error:
                status, reason = describe_fault(error)
                if status != "oom":
                    raise
                trials.fail(depth, size, status, reason)
                sizes = tuple(one for one in sizes if one < size)
                words = f"batch {size} did not fit" + (f" at depth {depth}" if depth else "")


class _Prompt(NamedTuple):
    """What is read: the timed tokens [batch_size, prompt_tokens], and those before them [batch_size, depth]."""

    tokens: Ints
    after: Ints | None


class _Attempt(NamedTuple):
    """A timed generation, and what it ran under."""

    sample: Generation
    conditions: Conditions
    energy_j: float | None


class _Trials:
    """The timed repetitions of one cell."""

    def __init__(
        self, engine: Engine, config: ThroughputConfig, context: Context, sampler: Sampler, meter: Meter | None
    ) -> None:
        self._engine, self._config, self._context = engine, config, context
        self._sampler, self._meter = sampler, meter
        self._mode = engine.decode_mode(config.decode, config.kv_cache)
        self._done = 0
        self._trial = 0
        self._depth = 0
        self._total = len(config.depths) * len(config.batch_sizes) * (1 + config.warmup + config.trials)

    def run(self, depth: int, batch_size: int) -> None:
        """All repetitions at one depth and batch size."""
        config, self._depth = self._config, depth
        missing = [trial for trial in range(config.trials) if self._context.wants(self._unit(batch_size, trial))]
        if not missing:
            return
        self._trial = missing[0]
        if self._mode == "compiled":
            self._context.progress(f"throughput, batch {batch_size}, compiling", self._done, self._total)
        length = depth + config.seq_len
        session = self._engine.session(batch_size, length, decode=config.decode, kv_cache=config.kv_cache)
        try:
            self._measure(session, batch_size, missing)
        finally:
            session.close()

    def _measure(self, session: Session, batch_size: int, missing: list[int]) -> None:
        config = self._config
        tokens = random_prompt(self._engine, batch_size, self._depth + config.prompt_tokens, self._context.seed)
        prompt = _Prompt(tokens[:, self._depth :], tokens[:, : self._depth] if self._depth else None)
        peak = self._peak(session, batch_size, prompt)
        for i in range(config.warmup):
            self._progress(batch_size, f"warm-up {i + 1}/{config.warmup}")
            self._generate(session, prompt)
        for self._trial in missing:
            self._progress(batch_size, f"trial {self._trial + 1}/{config.trials}")
            self._emit(batch_size, peak, *self._valid_trial(session, prompt))

    def _peak(self, session: Session, batch_size: int, prompt: _Prompt) -> int | None:
        """Of a generation; None where the engine cannot tell."""
        self._progress(batch_size, "memory")
        if Capability.PEAK_MEMORY not in self._engine.can:
            return None
        # Two tokens reach every allocation of a generation whose cache has its full size from the start.
        tokens = 2 if self._config.kv_cache == "16bit" else self._config.new_tokens
        return sum(self._engine.peak_memory(lambda: self._generate(session, prompt, tokens)))

    def fail(self, depth: int, batch_size: int, status: Status, reason: str) -> None:
        """The row of the trial that failed, or of one that was not even tried."""
        self._depth = depth
        self._keep(self._row(batch_size, status=status, error=reason))
        self._trial = 0

    def _valid_trial(self, session: Session, prompt: _Prompt) -> tuple[_Attempt, int]:
        """The first trial that nothing disturbed, or the last that may be made; and how many were made."""
        made = self._attempt(session, prompt)
        attempts = 1
        while made.conditions.validity != "ok" and attempts <= self._config.max_retries_invalid:
            made = self._attempt(session, prompt)
            attempts += 1
        return made, attempts

    def _attempt(self, session: Session, prompt: _Prompt) -> _Attempt:
        time.sleep(self._config.cooldown_s)
        # What is read before the prompt would be counted, too.
        meter = self._meter if prompt.after is None else None
        before = self._sampler.sample()
        counted = meter.read() if meter else None
        sample = self._generate(session, prompt)
        joules = meter.joules(counted, meter.read()) if meter else None
        return _Attempt(sample, self._sampler.since(before), joules)

    def _generate(self, session: Session, prompt: _Prompt, new_tokens: int | None = None) -> Generation:
        tokens = new_tokens or self._config.new_tokens
        if prompt.after is None:  # engines that know no depth take no other argument
            return session.generate(prompt.tokens, tokens)
        return session.generate(prompt.tokens, tokens, after=prompt.after)

    def _emit(self, batch_size: int, peak: int | None, made: _Attempt, attempts: int) -> None:
        sample = made.sample
        gaps = sample.step_s if sample.itl_s is None else sample.itl_s
        self._keep(
            self._row(
                batch_size,
                status="ok",
                ttft_s=sample.ttft_s,
                prefill_tokens_per_s=formulas.prefill_tokens_per_s(
                    batch_size, self._config.prompt_tokens, sample.ttft_s
                ),
                decode_tokens_per_s=formulas.decode_tokens_per_s(batch_size, sample.step_s),
                itl_p50_s=formulas.quantile(gaps, 0.5),
                itl_p95_s=formulas.quantile(gaps, 0.95),
                peak_memory_bytes=peak,
                attempts=attempts,
                compile_s=sample.compile_s,
                energy_j=made.energy_j,
                energy_source=self._meter.source if self._meter and made.energy_j is not None else None,
                **asdict(made.conditions),
            )
        )

    def _keep(self, row: ThroughputRow) -> None:
        self._context.emit(row, unit=self._unit(row.batch_size, row.trial))

    def _unit(self, batch_size: int, trial: int) -> str:
        return Trial(self._context.start, self._depth, batch_size, trial).unit

    def _row(self, batch_size: int, **fields: object) -> ThroughputRow:
        return ThroughputRow.model_validate(
            {
                **self._context.identity,
                "batch_size": batch_size,
                "trial": self._trial,
                "start": self._context.start,
                "depth": self._depth,
                "prompt_tokens": self._config.prompt_tokens,
                "new_tokens": self._config.new_tokens,
                "decode_mode": self._mode,
                "kv_cache": self._config.kv_cache,
                **fields,
            }
        )

    def _progress(self, batch_size: int, what: str) -> None:
        depth = f", depth {self._depth}" if self._depth else ""
        self._context.progress(f"throughput, batch {batch_size}{depth}, {what}", self._done, self._total)
        self._done += 1
