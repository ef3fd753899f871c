"""The YAML schema. Every option of a run is declared here, once, with its type, default and meaning.

Nothing here imports torch: a configuration is read, checked and printed on a machine without any backend.
"""

from qbench.config.backends import Backend, GroupSize
from qbench.config.base import Name, Resources
from qbench.config.kinds import backend_class, backend_kinds, kind_names
from qbench.config.measures import (
    GenerationsConfig,
    KVCache,
    MeasureConfig,
    MemoryConfig,
    MMLUConfig,
    NoiseFloorConfig,
    PerplexityConfig,
    Reading,
    SustainedConfig,
    TasksConfig,
    ThroughputConfig,
    TimedGeneration,
)
from qbench.config.run import NOISE_SUFFIX, CalibrationConfig, ModelConfig, RunConfig

__all__ = [
    "NOISE_SUFFIX",
    "Backend",
    "CalibrationConfig",
    "GenerationsConfig",
    "GroupSize",
    "KVCache",
    "MMLUConfig",
    "MeasureConfig",
    "MemoryConfig",
    "ModelConfig",
    "Name",
    "NoiseFloorConfig",
    "PerplexityConfig",
    "Reading",
    "Resources",
    "RunConfig",
    "SustainedConfig",
    "TasksConfig",
    "ThroughputConfig",
    "TimedGeneration",
    "backend_class",
    "backend_kinds",
    "kind_names",
]
