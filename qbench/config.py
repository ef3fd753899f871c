"""The YAML schema. Every option of a run is declared here, once, with its type, default and meaning.

Nothing here imports torch: a configuration is read, checked and printed on a machine without any backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names and labels become file names; this keeps them inside the results folder."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]
GroupSize = Annotated[int, Field(ge=1)] | Literal[-1]
"""Consecutive weights of a row that are quantized together; -1: the whole row."""

NOISE_SUFFIX = ".noise"
"""Ends the names of the files with a noise floor's answers."""

DType = Literal["auto", "float16", "bfloat16", "float32"]


class Strict(BaseModel):
    """An immutable section of the configuration in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Backend(Strict):
    """Options that every backend has."""

    install: ClassVar[str] = "pip install qbench"
    """The command that makes the backend importable."""

    kind: str
    label: Name = ""
    """Name of the cell in rows, tables and plots; the kind unless given."""
    python: Path | None = Field(default=None, description="another interpreter, for libraries that cannot share one")

    @model_validator(mode="before")
    @classmethod
    def _label_defaults_to_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("label") and isinstance(data.get("kind"), str):
            return {**data, "label": data["kind"]}
        return data

    @property
    def weight_bits(self) -> int:
        """Bits of a stored weight code."""
        return 4

    @property
    def calibrates(self) -> bool:
        """Whether loading reads the calibration text."""
        return False


class FP16(Backend):
    """The 16-bit reference: the checkpoint as published, in the run's compute dtype."""

    kind: Literal["fp16"] = "fp16"

    @property
    def weight_bits(self) -> int:
        return 16


class Int4(Backend):
    """The project's own INT4: group-wise integers with a scale and an offset each, two codes a byte."""

    kind: Literal["int4"] = "int4"
    bits: Literal[4, 8] = 4
    group_size: GroupSize | Literal[0] = Field(
        default=128, description="weights that share a scale and an offset; 0: the whole tensor"
    )
    symmetric: bool = Field(default=False, description="scales only, without offsets")
    search: Literal["mse", "none"] = Field(
        default="mse", description="mse: scales of the least squared error; none: plain round-to-nearest"
    )
    kernel: Literal["auto", "triton", "cpu", "aten", "reference"] = Field(
        default="auto", description="what multiplies; the fastest that serves here unless given"
    )
    lm_head: Literal["16bit", "int8"] = Field(default="16bit", description="int8: the output embedding, too, in 8 bits")
    checkpoint: Path | None = Field(
        default=None, description="folder that `qbench quantize` wrote; nothing is quantized while loading"
    )

    @property
    def weight_bits(self) -> int:
        return self.bits


class NF4(Backend):
    """bitsandbytes' 4-bit NormalFloat, blocks of 64."""

    install: ClassVar[str] = "pip install 'qbench[nf4]'"
    kind: Literal["nf4"] = "nf4"
    double_quant: bool = Field(default=False, description="quantize the block scales, too")


class Calibrated(Backend):
    """Options of the backends that gptqmodel quantizes with a calibration text."""

    install: ClassVar[str] = "pip install 'qbench[gptq]'"
    group_size: GroupSize = Field(default=128, description="weights that share a scale")
    checkpoint: str | None = Field(
        default=None, description="folder or hub id of a checkpoint that is already quantized; nothing is calibrated"
    )

    @property
    def calibrates(self) -> bool:
        return self.checkpoint is None


class AWQ(Calibrated):
    """Activation-aware weight quantization, asymmetric, by gptqmodel."""

    kind: Literal["awq"] = "awq"


class GPTQ(Calibrated):
    """GPTQ, by gptqmodel."""

    kind: Literal["gptq"] = "gptq"
    desc_act: bool = Field(default=False, description="quantize columns in the order of their activations")
    sym: bool = Field(default=True, description="symmetric codes, without zero points")


BackendConfig = Annotated[FP16 | Int4 | NF4 | AWQ | GPTQ, Field(discriminator="kind")]


class CalibrationConfig(Strict):
    """The text that AWQ and GPTQ look at while they quantize."""

    text: str | None = Field(
        default=None, description="a text file, `demo`, or `wikitext2` (hub); the model's natural choice unless given"
    )
    samples: int = Field(default=128, ge=1, description="number of sequences")
    length: int = Field(default=512, ge=16, description="tokens a sequence")


class MemoryConfig(Strict):
    """Peak memory of the first forward after loading."""

    batch_size: int = Field(default=1, ge=1)
    seq_len: int = Field(default=512, ge=1, description="tokens in that forward")


class ThroughputConfig(Strict):
    """Prefill and decode speed."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 8, 32), min_length=1)
    seq_len: int = Field(default=2048, ge=2, description="prompt plus new tokens")
    new_tokens: int = Field(default=128, ge=2, description="tokens generated; the first belongs to the prefill")
    trials: int = Field(default=3, ge=1, description="timed repetitions; every one is a row")
    warmup: int = Field(default=1, ge=0, description="repetitions before them that are not counted")
    decode: Literal["auto", "eager", "graph"] = Field(
        default="auto", description="graph: the decode step as a CUDA graph; auto: graph on CUDA, eager elsewhere"
    )

    @field_validator("batch_sizes")
    @classmethod
    def _distinct_ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if list(sizes) != sorted(set(sizes)):
            raise ValueError("batch sizes must be distinct and ascending")
        return sizes

    @model_validator(mode="after")
    def _prompt_is_left(self) -> Self:
        if self.new_tokens >= self.seq_len:
            raise ValueError(f"new_tokens ({self.new_tokens}) must be less than seq_len ({self.seq_len})")
        return self

    @property
    def prompt_tokens(self) -> int:
        return self.seq_len - self.new_tokens


class MMLUConfig(Strict):
    """Four-choice accuracy by lm-evaluation-harness's own task."""

    num_fewshot: int = Field(default=5, ge=0, le=5)
    data: str | None = Field(
        default=None,
        description="folder in the published CSV layout, or `demo`; the hub's cais/mmlu unless given",
    )
    subjects: tuple[str, ...] | None = Field(default=None, min_length=1, description="only these; marks rows partial")
    limit: int | None = Field(default=None, ge=1, description="questions a subject; marks rows partial")
    batch_size: int = Field(default=8, ge=1)

    @property
    def partial(self) -> bool:
        """Whether the figure covers less than the whole test set."""
        return self.limit is not None or self.subjects is not None


class NoiseFloorConfig(Strict):
    """MMLU once more, of 16-bit cells only: what a batch size alone changes is no effect of quantization."""

    batch_size: int | None = Field(
        default=None, ge=1, description="of the second evaluation; half of measure.mmlu.batch_size unless given"
    )


class GenerationsConfig(Strict):
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


class PerplexityConfig(Strict):
    """Perplexity of a text, and how far the predictions are from those of the 16-bit cell."""

    text: str | None = Field(
        default=None,
        description="a text file, `demo`, or `wikitext2` (hub, test set); the model's natural choice unless given",
    )
    window: int | None = Field(
        default=None, ge=2, description="tokens a window; 2048 unless given, or the model's context if that is shorter"
    )
    limit: int | None = Field(default=None, ge=1, description="windows; marks rows partial")
    divergence: bool = Field(default=True, description="compare every token's prediction with the fp16 cell's")
    top_k: int = Field(
        default=64, ge=1, description="of the fp16 cell's predictions kept a token, beside the rest's sum"
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
    generations: GenerationsConfig | None = None
    perplexity: PerplexityConfig | None = None
    noise_floor: NoiseFloorConfig | None = None

    def of(self, backend: Backend) -> dict[str, Strict]:
        """What is measured of a cell, by name, in order."""
        chosen: dict[str, Strict] = {name: settings for name, settings in self if settings is not None}
        if backend.weight_bits < 16:
            chosen.pop("noise_floor", None)
        return chosen


class RunConfig(Strict):
    """One run: a model, the backends to compare on it, and what to measure."""

    name: Name
    model: ModelConfig
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: DType = Field(default="auto", description="compute dtype; auto: float16 on CUDA, else bfloat16")
    seed: int = Field(default=0, ge=0, description="prompts, random weights and calibration sampling")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of a worker; torch's choice unless given")
    timeout_s: float | None = Field(default=None, gt=0, description="a cell that takes longer is ended: timeout")
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
    def _quality_needs_trained_weights(self) -> Self:
        if self.model.weights == "random" and self.measure.mmlu:
            raise ValueError("measure.mmlu: a model with random weights has no accuracy; remove it or use real weights")
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
        if all(backend.weight_bits < 16 for backend in self.backends):
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
        return next((backend for backend in self.backends if isinstance(backend, FP16)), None)


def backend_kinds() -> dict[str, type[Backend]]:
    """The kinds that a configuration may name, in the order of their declaration."""
    union, _discriminator = get_args(BackendConfig)
    return {cls.model_fields["kind"].default: cls for cls in get_args(union)}
