"""The YAML schema. Every option of a run is declared here, once, with its type, default and meaning.

Nothing here imports torch: a configuration is read, checked and printed on a machine without any backend.
"""

from qbench.config.backends import AWQ, FP16, GPTQ, NF4, Backend, Calibrated, GroupSize, Int4, backend_kinds
from qbench.config.base import Name, Resources
from qbench.config.measures import (
    Engine,
    GenerationsConfig,
    MeasureConfig,
    MemoryConfig,
    MMLUConfig,
    NoiseFloorConfig,
    PerplexityConfig,
    SustainedConfig,
    TasksConfig,
    ThroughputConfig,
    TimedGeneration,
)
from qbench.config.run import NOISE_SUFFIX, CalibrationConfig, ModelConfig, RunConfig

__all__ = [
    "AWQ",
    "FP16",
    "GPTQ",
    "NF4",
    "NOISE_SUFFIX",
    "Backend",
    "Calibrated",
    "CalibrationConfig",
    "Engine",
    "GenerationsConfig",
    "GroupSize",
    "Int4",
    "MMLUConfig",
    "MeasureConfig",
    "MemoryConfig",
    "ModelConfig",
    "Name",
    "NoiseFloorConfig",
    "PerplexityConfig",
    "Resources",
    "RunConfig",
    "SustainedConfig",
    "TasksConfig",
    "ThroughputConfig",
    "TimedGeneration",
    "backend_kinds",
]
