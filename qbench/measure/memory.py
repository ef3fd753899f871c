"""Peak memory of the first forward of the loaded model: its weights and what is live at the worst moment."""

from __future__ import annotations

from qbench.config import MemoryConfig
from qbench.engine.base import Capability, Engine
from qbench.measure.base import Context, check_length, random_prompt
from qbench.records.rows import MemoryRow

NEEDS = frozenset({Capability.GENERATE, Capability.PEAK_MEMORY})
"""Capabilities without which a cell's measure is unsupported."""


def measure(engine: Engine, config: MemoryConfig, context: Context) -> None:
    """Emit one `MemoryRow`."""
    check_length(engine, config.seq_len, "measure.memory.seq_len")
    context.progress("memory", 0, 1)
    prompt = random_prompt(engine, config.batch_size, config.seq_len, context.seed)

    def forward() -> None:
        engine.session(config.batch_size, config.seq_len, decode="eager").generate(prompt, 1)

    peaks = engine.peak_memory(forward)
    context.emit(
        MemoryRow(
            **context.identity,
            batch_size=config.batch_size,
            seq_len=config.seq_len,
            peak_memory_bytes=sum(peaks),
            peak_memory_per_device=";".join(map(str, peaks)) if engine.about.gpu_uuid else None,
        )
    )
    context.progress("memory", 1, 1)
