"""Decode speed over minutes of generating without a pause; every window of some seconds is a row.

A machine that is cool is faster than it stays: clocks fall when it is warm or its power budget is spent. What a user of
hours gets is the speed at the end, see `qbench.analysis.formulas.steady_state`.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from qbench.analysis import formulas
from qbench.config import SustainedConfig
from qbench.engine.base import Capability, Engine
from qbench.machine.conditions import Sampler
from qbench.measure.base import Context, check_length, make_sampler, random_prompt
from qbench.records.rows import SustainedRow

NEEDS = frozenset({Capability.GENERATE})
"""Capabilities without which a cell's measure is unsupported."""


def measure(engine: Engine, config: SustainedConfig, context: Context, sampler: Sampler | None = None) -> None:
    """Emit a `SustainedRow` for every window. `sampler` looks at the machine between windows, as in throughput."""
    check_length(engine, config.seq_len, "measure.sustained.seq_len")
    mode = engine.decode_mode(config.decode, config.kv_cache)
    if mode == "compiled":
        context.progress("sustained, compiling", 0, round(60 * config.minutes))
    session = engine.session(config.batch_size, config.seq_len, decode=config.decode, kv_cache=config.kv_cache)
    prompt = random_prompt(engine, config.batch_size, config.prompt_tokens, context.seed)
    sampler = sampler or make_sampler(engine)
    minutes_s = 60 * config.minutes
    # Captures the graph and reaches every allocation; no row needs it, and it is too short to warm the machine.
    session.generate(prompt, 2)
    time.sleep(config.cooldown_s)
    began, t_s = time.perf_counter(), 0.0
    before = sampler.sample()
    while t_s < minutes_s:
        context.progress("sustained", round(t_s), round(minutes_s))
        window_ends, step_s, generations = min(t_s + config.window_s, minutes_s), list[float](), 0
        while t_s < window_ends:
            step_s += session.generate(prompt, config.new_tokens).step_s
            generations += 1
            t_s = time.perf_counter() - began
        conditions, before = sampler.since(before), sampler.sample()
        context.emit(
            SustainedRow.model_validate(
                {
                    **context.identity,
                    "batch_size": config.batch_size,
                    "prompt_tokens": config.prompt_tokens,
                    "new_tokens": config.new_tokens,
                    "decode_mode": mode,
                    "kv_cache": config.kv_cache,
                    "t_s": t_s,
                    "generations": generations,
                    "tokens_per_s": formulas.decode_tokens_per_s(config.batch_size, step_s),
                    **asdict(conditions),
                }
            )
        )
    context.progress("sustained", round(minutes_s), round(minutes_s))
    session.close()
