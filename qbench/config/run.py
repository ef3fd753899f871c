"""A run: a model, the backends to compare on it, and what to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from qbench.config.backends import Backend
from qbench.config.base import Name, Resources, Strict
from qbench.config.kinds import BackendConfig
from qbench.config.measures import MeasureConfig

NOISE_SUFFIX = ".noise"
"""Ends the names of the files with a noise floor's answers."""

DType = Literal["auto", "float16", "bfloat16", "float32"]


class ModelConfig(Strict):
    """Which model is measured: exactly one of `id`, `path`, `demo` and `shape`."""

    id: str | None = Field(default=None, description="Hugging Face hub id, e.g. meta-llama/Meta-Llama-3-8B-Instruct")
    path: Path | None = Field(default=None, description="folder with config.json and safetensors")
    demo: bool = Field(default=False, description="the small trained model that ships inside the package")
    shape: str | None = Field(default=None, description="a shipped shape, for random weights, e.g. llama-3-8b")
    weights: Literal["trained", "random"] = Field(default="trained", description="random: memory and speed only")
    revision: str | None = Field(default=None, description="hub branch, tag or commit")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [key for key in ("id", "path", "demo", "shape") if getattr(self, key)]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none of them"
            raise ValueError(f"give exactly one of id, path, demo and shape ({found})")
        if self.shape and self.weights != "random":
            raise ValueError("a shape has no trained weights: add `weights: random`, or name a model by id or path")
        if self.demo and self.weights == "random":
            raise ValueError("the demo model comes with its weights: remove `weights: random`, or use a shape")
        if self.revision and not self.id:
            raise ValueError("revision belongs to a hub id")
        return self

    @property
    def name(self) -> str:
        """What rows, tables and captions call the model."""
        if self.demo:
            return "qbench-demo"
        name = self.id or self.shape or (self.path.resolve().name if self.path else "")
        return f"{name} (random weights)" if self.weights == "random" else name


class CalibrationConfig(Strict):
    """The text that AWQ, GPTQ and others look at while they quantize."""

    text: str | None = Field(
        default=None, description="a text file, `demo`, or `wikitext2` (hub); the model's natural choice unless given"
    )
    samples: int = Field(default=128, ge=1, description="number of sequences")
    length: int = Field(default=512, ge=16, description="tokens a sequence")


class RunConfig(Strict):
    """One run: a model, the backends to compare on it, and what to measure."""

    name: Name
    model: ModelConfig
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda, or a GPU such as cuda:1"
    )
    device_map: Literal["none", "auto"] = Field(
        default="none", description="auto: a model larger than one GPU is laid over all that are visible"
    )
    dtype: DType = Field(default="auto", description="compute dtype; auto: float16 on CUDA, else bfloat16")
    seed: int = Field(default=0, ge=0, description="prompts, random weights and calibration sampling")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of a worker; torch's choice unless given")
    timeout_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="a cell that takes longer is ended: timeout"
    )
    cache: bool = Field(default=True, description="keep quantized checkpoints, see `qbench cache ls`, and use them")
    resources: Resources = Field(default=Resources(), description="what a cell asks of a cluster's node")
    calibration: CalibrationConfig = CalibrationConfig()
    backends: tuple[BackendConfig, ...] = Field(min_length=1)
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> Self:
        labels = [backend.label.lower() for backend in self.backends]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"backends: label {', '.join(twice)} is used twice; give each a `label:` of its own")
        return self

    @model_validator(mode="after")
    def _several_gpus_have_no_number_and_no_graph(self) -> Self:
        if self.device_map == "none":
            return self
        if self.device.startswith("cuda:"):
            raise ValueError(f"device_map: auto takes all GPUs that are visible, not {self.device}; use device: cuda")
        for name in ("throughput", "sustained"):
            timed = getattr(self.measure, name)
            if timed and timed.decode in ("graph", "compiled"):
                step = "CUDA graph" if timed.decode == "graph" else "compiled step"
                raise ValueError(f"measure.{name}.decode: a {step} holds one GPU; use auto or eager with device_map")
        return self

    @model_validator(mode="after")
    def _a_quantized_cache_grows(self) -> Self:
        cells = [backend.label for backend in self.backends if backend.kv_cache != "16bit"]
        for name in ("throughput", "sustained"):
            timed = getattr(self.measure, name)
            if cells and timed and timed.decode in ("graph", "compiled"):
                raise ValueError(
                    f"measure.{name}.decode: {timed.decode} needs a cache of one length, and that of {cells[0]} grows "
                    "(kv_cache); use auto or eager"
                )
        if cells and self.measure.throughput and self.measure.throughput.deepest:
            raise ValueError(
                f"measure.throughput.depths: need a cache in 16 bit, and {cells[0]} has a kv_cache of its own; leave "
                "one of them out, or use a longer seq_len"
            )
        return self

    @model_validator(mode="after")
    def _quality_needs_trained_weights(self) -> Self:
        if self.model.weights == "random" and self.measure.mmlu:
            raise ValueError("measure.mmlu: a model with random weights has no accuracy; remove it or use real weights")
        if self.model.weights == "random" and self.measure.tasks:
            raise ValueError(
                "measure.tasks: a model with random weights has no accuracy; remove it or use real weights"
            )
        if self.model.weights == "random" and self.measure.generations:
            raise ValueError(
                "measure.generations: a model with random weights has nothing to say; remove it or use real weights"
            )
        if self.model.weights == "random" and self.measure.perplexity:
            raise ValueError(
                "measure.perplexity: a model with random weights predicts nothing; remove it or use real weights"
            )
        return self

    @model_validator(mode="after")
    def _noise_floor_has_what_it_repeats(self) -> Self:
        noise, mmlu = self.measure.noise_floor, self.measure.mmlu
        if noise is None:
            return self
        if mmlu is None:
            raise ValueError("measure.noise_floor: repeats measure.mmlu, which is not there; add mmlu or remove it")
        if noise.batch_size == mmlu.batch_size:
            raise ValueError(f"measure.noise_floor.batch_size: must differ from that of mmlu ({mmlu.batch_size})")
        if not any(backend.is_reference for backend in self.backends):
            raise ValueError("measure.noise_floor: needs a cell of 16 bits; add `kind: fp16` or remove it")
        if any(backend.label.endswith(NOISE_SUFFIX) for backend in self.backends):
            raise ValueError(f"measure.noise_floor: its answers are named *{NOISE_SUFFIX}; no label may end so")
        return self

    @model_validator(mode="after")
    def _divergence_needs_a_reference(self) -> Self:
        if self.measure.perplexity and self.measure.perplexity.divergence and self.reference is None:
            raise ValueError(
                "measure.perplexity.divergence: compares with the fp16 cell, and there is none; "
                "add `- kind: fp16` to backends, or set divergence to false"
            )
        return self

    @property
    def reference(self) -> Backend | None:
        """The 16-bit cell that divergence is measured against: the first of them; None where it is not measured."""
        if not (self.measure.perplexity and self.measure.perplexity.divergence):
            return None
        return next((backend for backend in self.backends if backend.is_reference), None)
