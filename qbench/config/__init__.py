"""The YAML schema: every option of a run, once, with its type, default and meaning.

What a kind of backend adds stands in the kind's own module (`kinds`); what `auto` means, in `resolve`. Nothing here
imports torch: a configuration is read, checked and printed on a machine without any backend.
"""

from qbench.config.backends import Backend, GroupSize, KVCache
from qbench.config.base import Name, Resources
from qbench.config.kinds import backend_class, backend_kinds, kind_names
from qbench.config.measures import (
    GenerationsConfig,
    MeasureConfig,
    MemoryConfig,
    MMLUConfig,
    NoiseFloorConfig,
    PerplexityConfig,
    Reading,
    TasksConfig,
)
from qbench.config.requests import SLO, seconds
from qbench.config.run import NOISE_SUFFIX, CalibrationConfig, ModelConfig, RunConfig
from qbench.config.timed import LoadConfig, SustainedConfig, ThroughputConfig, TimedGeneration

__all__ = [
    "NOISE_SUFFIX",
    "SLO",
    "Backend",
    "CalibrationConfig",
    "GenerationsConfig",
    "GroupSize",
    "KVCache",
    "LoadConfig",
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
    "seconds",
]
