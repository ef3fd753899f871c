"""A configuration to begin with: what fits a model and a machine, as a commented YAML file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import ValidationError

from qbench.config import Backend, ModelConfig, backend_class, backend_kinds, kind_names
from qbench.config import load as configfile
from qbench.config.target import Target
from qbench.errors import QbenchError
from qbench.machine.environment import Environment
from qbench.model.architecture import Architecture, of_model
from qbench.model.find import known_config, shapes
from qbench.plan.engines import predict
from qbench.plan.forecast import fit
from qbench.plan.memory import Prediction
from qbench.records.files import write_atomically
from qbench.text import suggestion

BATCH_SIZES = (1, 8, 32)

SMALL_PARAMETERS = 100_000_000
"""Below, a CPU takes accuracy and calibration in minutes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the file will say."""

    model: ModelConfig
    architecture: Architecture | None
    """None where the model is a hub id that is not known here."""
    device: Literal["cpu", "cuda"]
    memory_bytes: int
    backends: tuple[str, ...]
    """Kinds."""
    batch_sizes: tuple[int, ...]
    seq_len: int

    @property
    def quick(self) -> bool:
        """Whether everything can be measured in full on the device at hand."""
        return self.device == "cuda" or (
            self.architecture is not None and self.architecture.parameters <= SMALL_PARAMETERS
        )

    @property
    def new_tokens(self) -> int:
        """Of a timed generation: an eighth of it, and no more than tell the speed."""
        return max(2, min(128 if self.device == "cuda" else 32, self.seq_len // 8))

    def with_backends(self, kinds: Sequence[str]) -> Choice:
        """The same with other backends.

        Raises:
            QbenchError: a kind that there is not, or is named twice.
        """
        valid = kind_names()
        for kind in kinds:
            if kind not in valid:
                hint = suggestion(kind, valid)
                raise QbenchError(f"--backends: unknown backend {kind!r}{hint} (valid: {', '.join(valid)})")
        if len(set(kinds)) < len(kinds):
            raise QbenchError("--backends: a kind is listed twice; give cells labels of their own in the file instead")
        return replace(self, backends=tuple(kinds))


def memory_of(machine: Environment) -> int:
    """Bytes of the device that `auto` takes."""
    return machine.gpus[0].memory_bytes if machine.gpus else machine.memory_bytes


def choose(model: str, machine: Environment, *, memory_bytes: int | None = None) -> Choice:
    """What fits a model, named as on the command line, on this machine or one of so much memory.

    A backend is chosen when loading it and its first forward fit. Of a model that is not known here, all are.

    Raises:
        QbenchError: the name is none of a model, its config.json cannot be used, or nothing fits.
    """
    config = model_of(model)
    known = None if config.id and known_config(config) is None else of_model(config)
    device: Literal["cpu", "cuda"] = "cuda" if machine.gpus else "cpu"
    choice = Choice(
        model=config,
        architecture=known,
        device=device,
        memory_bytes=memory_bytes or memory_of(machine),
        backends=tuple(_proposed()),
        batch_sizes=BATCH_SIZES,
        seq_len=2048 if device == "cuda" else 256,
    )
    if known is None:
        return choice
    choice = replace(choice, seq_len=min(choice.seq_len, known.max_position_embeddings or choice.seq_len))
    target = Target(device, 2, machine.cpu_features)
    predicted = {kind: predict(known, cls.model_validate({"kind": kind}), target) for kind, cls in _proposed().items()}
    cells = {kind: one for kind, one in predicted.items() if one}
    fitting = tuple(kind for kind, cell in cells.items() if _loads(cell, choice))
    if not fitting:
        least = min(cell.weights().total for cell in cells.values())
        raise QbenchError(
            f"{config.name}: no backend fits {choice.memory_bytes / 2**30:.1f} GiB; the smallest takes "
            f"{least / 2**30:.1f} GiB for its weights. Choose a smaller model, or say --memory of a larger device"
        )
    sizes = tuple(size for size in BATCH_SIZES if any(_generates(cells[kind], choice, size) for kind in fitting))
    return replace(choice, backends=fitting, batch_sizes=sizes or BATCH_SIZES[:1])


def _proposed() -> dict[str, type[Backend]]:
    return {kind: cls for kind, cls in backend_kinds().items() if cls.proposed}


def model_of(text: str) -> ModelConfig:
    """The model that a text names: `demo`, a folder, a shipped shape, or a hub id.

    Raises:
        QbenchError: it is none of these.
    """
    if text == "demo":
        return ModelConfig(demo=True)
    if text and Path(text).expanduser().is_dir():
        return ModelConfig(path=Path(text))
    if text in shapes():
        return ModelConfig(shape=text, weights="random")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return ModelConfig(id=text)
    hint = suggestion(text, ["demo", *shapes()])
    raise QbenchError(
        f"--model {text}: neither demo, nor a folder, nor a hub id (owner/name), nor a shipped shape{hint} "
        f"({', '.join(shapes())})"
    )


def check_path(path: Path, *, force: bool) -> None:
    """Refuse a file that is there, unless it may be replaced.

    Raises:
        QbenchError: it is there.
    """
    if path.exists() and not (force and path.is_file()):
        raise QbenchError(f"{path}: is there already; choose another name, or replace a file with --force")


def write(path: Path, choice: Choice, *, force: bool = False) -> None:
    """Write the file, once it is known to be valid.

    Raises:
        QbenchError: see `check_path`; or it cannot be written.
    """
    check_path(path, force=force)
    content = text(choice, path)
    try:
        with TemporaryDirectory() as folder:
            trial = Path(folder) / path.name
            trial.write_text(content, encoding="utf-8")
            configfile.load(trial)
        write_atomically(path, content)
    except OSError as error:
        raise QbenchError(f"{path}: cannot be written ({error.strerror})") from error


def text(choice: Choice, path: Path) -> str:
    """The YAML, with comments that say what each key is for."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", choice.model.name.rpartition("/")[2].removesuffix(" (random weights)"))
    lines = [
        f"# {choice.model.name}, for {choice.memory_bytes / 2**30:.1f} GiB of memory on {choice.device}.",
        f"#   qbench plan {path}    # memory and speed to expect, before anything runs",
        f"#   qbench run {path} && qbench plot results/{name.strip('-.') or 'run'}",
        f"name: {name.strip('-.') or 'run'}",
        *_model_lines(choice.model),
        f"device: {choice.device}",
        "backends:  # each is loaded and measured in a process of its own",
        *(f"  - kind: {kind}" for kind in choice.backends),
    ]
    if choice.architecture is None:
        lines.append("# What fits is not known before the model's config.json is here; `qbench plan` will say.")
    else:
        left_out = [kind for kind in _proposed() if kind not in choice.backends]
        lines += [f"# left out: {', '.join(left_out)}; by estimate loading takes more memory"] if left_out else []
    return "\n".join([*lines, *_calibration_lines(choice), *_measure_lines(choice)]) + "\n"


def _model_lines(model: ModelConfig) -> list[str]:
    key = next(key for key in ("id", "path", "demo", "shape") if getattr(model, key))
    value = "true" if key == "demo" else json.dumps(str(getattr(model, key)), ensure_ascii=False)
    random = ["  weights: random  # memory and speed only"] if model.weights == "random" else []
    return ["model:", f"  {key}: {value}", *random]


def _calibration_lines(choice: Choice) -> list[str]:
    classes = {kind: backend_class(kind) for kind in choice.backends}
    try:
        calibrating = [kind for kind, cls in classes.items() if cls and cls(kind=kind).calibrates]
    except ValidationError as error:
        options = ", ".join(str(detail["loc"][0]) for detail in error.errors() if detail["loc"])
        raise QbenchError(f"backend {error.title}: needs {options}; write its configuration by hand") from error
    if not calibrating:
        return []
    if choice.model.weights == "random":
        samples, length, why = 2, 32, "few: random weights teach nothing, and their speed is the same"
    elif choice.quick:
        samples, length, why = 128, 512, "sequences and tokens of each"
    else:
        samples, length, why = 32, 256, "few, since calibrating on a CPU is slow; 128 × 512 is usual"
    return [f"calibration:  # of {' and '.join(calibrating)}: {why}", f"  samples: {samples}", f"  length: {length}"]


def _measure_lines(choice: Choice) -> list[str]:
    sizes = ", ".join(map(str, choice.batch_sizes))
    lines = [
        "measure:",
        "  memory:  # peak of one forward",
        f"    seq_len: {choice.seq_len}",
        "  throughput:  # tokens/s of a prompt and new tokens, together seq_len",
        f"    batch_sizes: [{sizes}]",
        f"    seq_len: {choice.seq_len}",
        f"    new_tokens: {choice.new_tokens}",
        "    trials: 3",
    ]
    if choice.model.weights == "random":
        return lines
    if choice.model.demo:
        lines += ["  mmlu:  # the demo model's own questions", "    data: demo", "    batch_size: 32"]
    else:
        lines += ["  mmlu:  # 5-shot, from the hub; `data:` takes a folder in the published CSV layout"]
        lines += [] if choice.quick else ["    limit: 5  # questions a subject; without it, all 14,042"]
        lines += ["    batch_size: 8"]
    divergence = "" if "fp16" in choice.backends else "    divergence: false  # it would compare with fp16\n"
    limit = "" if choice.quick else "    limit: 5  # windows; without it, the whole text\n"
    window = "    window: 512\n" if choice.model.demo else ""
    body = (divergence + limit + window).rstrip("\n")
    return [*lines, "  perplexity:  # and, with fp16 there, the divergence from it", *([body] if body else [])]


def _loads(cell: Prediction, choice: Choice) -> bool:
    peak = cell.generation_bytes(1, choice.seq_len, choice.seq_len)
    load = cell.load_bytes() if choice.device == "cpu" else 0
    return fit(max(peak, load), choice.memory_bytes) == "yes"


def _generates(cell: Prediction, choice: Choice, batch_size: int) -> bool:
    prompt = choice.seq_len - choice.new_tokens
    return fit(cell.generation_bytes(batch_size, prompt, choice.seq_len), choice.memory_bytes) == "yes"
