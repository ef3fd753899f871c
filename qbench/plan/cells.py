"""What a configuration will run: its cells, in order, and what can be refused before anything is loaded."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.config import Backend, ModelConfig, RunConfig, needles
from qbench.config import resolve as names
from qbench.config.requests import read_requests
from qbench.config.target import Target
from qbench.errors import QbenchError
from qbench.machine.environment import Environment
from qbench.model import kv_cache, texts
from qbench.model.find import check_config, context_length, known_config, shapes
from qbench.text import suggestion

LENGTHS = ("memory", "throughput", "sustained")
"""Measures with sequences of a length that the configuration sets."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that nothing speaks against."""

    config: RunConfig
    """Resolved, see `resolve`."""
    cells: tuple[Backend, ...]
    """Those that are chosen, in the order of the configuration."""
    machine: Environment
    """The one that they will run on."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures should know of it."""

    @property
    def order(self) -> tuple[str, ...]:
        """Labels of the cells as they run."""
        return tuple(cell.label for cell in shuffle(self.config, self.cells))


Prepare = Callable[[RunConfig, Sequence[Backend], Callable[[str], None]], Environment]
"""The machine that cells will run on, and what to say of it: `prepare` of `qbench.run.executor.Executor`."""


def make_plan(config: RunConfig, prepare: Prepare, only: Sequence[str] = ()) -> Plan:
    """What a run will do, before anything is loaded.

    Args:
        only: labels of the cells to run; all unless given.

    Raises:
        QbenchError: something is missing or cannot work, see `resolve`, `select`, `preflight`,
            `check_lengths` and `prepare`.
    """
    config = resolve(config)
    cells = select(config, only)
    notes: list[str] = []
    machine = prepare(config, cells, notes.append)
    preflight(config, machine)
    check_lengths(config)
    notes += unavailable(config, cells, machine)
    return Plan(config, tuple(cells), machine, tuple(notes))


def select(config: RunConfig, only: Sequence[str] = (), *, option: str = "--only") -> list[Backend]:
    """The cells of a run in the order of the configuration, or those of them that are named by label with `option`.

    Raises:
        QbenchError: a name that is no label of this configuration.
    """
    labels = [backend.label for backend in config.backends]
    for name in only:
        if name not in labels:
            hint = suggestion(name, labels)
            raise QbenchError(f"{option} {name}: no such cell{hint} (there are: {', '.join(labels)})")
    return [backend for backend in config.backends if not only or backend.label in only]


def shuffle(config: RunConfig, cells: Sequence[Backend]) -> list[Backend]:
    """The cells in the order in which they run: random by the run's seed, the reference of a divergence first.

    Machines warm up and drift; in the order of the YAML that would fall on the same backends in every run.
    """
    drawn = random.Random(config.seed).sample(list(cells), len(cells))
    return sorted(drawn, key=lambda backend: backend is not config.reference)


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with what it leaves to others: the settings of its cells' checkpoints, and perplexity's text.

    Rows then say how a weight really was quantized, and `run.json` what was read.

    Raises:
        QbenchError: a checkpoint is not there or damaged, or the configuration asks for other settings than its own.
    """
    cells = [backend.resolved() for backend in config.backends]
    measures = config.measure
    if measures.perplexity and measures.perplexity.text is None:
        named = measures.perplexity.model_copy(update={"text": texts.default_text(config.model)})
        measures = measures.model_copy(update={"perplexity": named})
    config = config.model_copy(update={"backends": tuple(cells), "measure": measures})
    content = _model_config(config.model)
    return fit_lengths(config, content) if content else config


def _model_config(model: ModelConfig) -> dict[str, Any] | None:
    """config.json as far as it is here; a folder that has none is refused where the model is found."""
    if model.path and not (model.path.expanduser() / "config.json").is_file():
        return None
    return known_config(model)


def fit_lengths(config: RunConfig, content: Mapping[str, Any]) -> RunConfig:
    """The configuration with lengths that it leaves to the defaults cut to the context that a config.json allows."""
    most = context_length(content)
    fitting: dict[str, Any] = {}
    for name in LENGTHS:
        measure = getattr(config.measure, name)
        room = most - getattr(measure, "deepest", 0) if most else 0
        if room > 0 and measure and measure.seq_len > room and "seq_len" not in measure.model_fields_set:
            fitting[name] = measure.model_copy(update={"seq_len": room})
    return config.model_copy(update={"measure": config.measure.model_copy(update=fitting)}) if fitting else config


def target_of(config: RunConfig, machine: Environment) -> Target:
    """Where and in what a run computes on a machine."""
    device = names.device_type(names.device(config.device, cuda=bool(machine.gpus)))
    dtype = names.dtype(config.dtype, device)
    capabilities = {gpu.capability for gpu in machine.gpus}
    return Target(
        device,
        4 if dtype == "float32" else 2,
        machine.cpu_features,
        device_map_auto=config.device_map == "auto" and device == "cuda",
        dtype=dtype,
        capability=capabilities.pop() if device == "cuda" and len(capabilities) == 1 else None,
    )


def preflight(config: RunConfig, environment: Environment) -> None:
    """Refuse what cannot work on this machine, before hours are spent on the cells that could.

    Raises:
        QbenchError: a file or folder that is not there, CUDA on a machine without it, or an option that its GPU or CPU
            rules out.
    """
    if config.device.startswith("cuda") and not environment.gpus:
        raise QbenchError(f"device: {config.device}, but no NVIDIA GPU is visible here; use device: auto or cpu")
    if content := _model_config(config.model):
        check_config(content, config.model.name)
    check_models(config)
    mmlu = config.measure.mmlu
    if mmlu and mmlu.data not in (None, "demo") and not Path(str(mmlu.data)).expanduser().is_dir():
        raise QbenchError(
            f"measure.mmlu.data: no folder {mmlu.data}; give one with test/ and dev/ in MMLU's CSV layout, or `demo`"
        )
    if config.measure.load and config.measure.load.requests:
        read_requests(config.measure.load.requests)
    for task, path in config.measure.tasks.data.items() if config.measure.tasks else ():
        if not path.expanduser().exists():
            raise QbenchError(f"measure.tasks.data: no file or folder {path} for {task}")
    here = any(cell.worker_python is None for cell in config.backends)  # other interpreters have packages of their own
    made = config.measure.tasks.made if config.measure.tasks else ()
    if made and here and (missing := [name for name in needles.LIBRARIES if name not in environment.versions]):
        raise QbenchError(f"measure.tasks.names: {made[0]} needs {' and '.join(missing)}; {needles.INSTALL}")
    timed = {"throughput": config.measure.throughput, "sustained": config.measure.sustained}
    for name, one in timed.items():
        if one and one.kv_cache != "16bit" and "hqq" not in environment.versions and here:
            raise QbenchError(f"measure.{name}.kv_cache: {one.kv_cache} needs hqq; {kv_cache.INSTALL}")
        if one and one.decode == "graph" and target_of(config, environment).device != "cuda":
            raise QbenchError(f"measure.{name}.decode: graph needs a CUDA device; use auto, eager or compiled")
    for cell in config.backends:
        if cell.kv_cache != "16bit" and "hqq" not in environment.versions and cell.worker_python is None:
            raise QbenchError(f"backends.{cell.label}.kv_cache: {cell.kv_cache} needs hqq; {kv_cache.INSTALL}")
    if config.calibration.text:
        texts.check(config.calibration.text, "calibration.text")
    if config.measure.perplexity and config.measure.perplexity.text:
        texts.check(config.measure.perplexity.text, "measure.perplexity.text")
    for backend in config.backends:
        check_checkpoint(backend)
        if backend.python and not backend.python.expanduser().is_file():
            raise QbenchError(f"backends.{backend.label}.python: no interpreter {backend.python}")
        if reason := backend.refusal(target_of(config, environment)):
            raise QbenchError(f"backends.{backend.label}.{reason}")
    if config.model.shape and config.model.shape not in shapes():
        hint = suggestion(config.model.shape, shapes())
        raise QbenchError(f"model.shape: unknown shape {config.model.shape!r}{hint} (valid: {', '.join(shapes())})")


def check_checkpoint(backend: Backend) -> None:
    """Refuse a `checkpoint:` that is written as a path and is no folder; names on the hub are owner/name.

    Raises:
        QbenchError: it is.
    """
    name = getattr(backend, "checkpoint", None)
    path = isinstance(name, str) and (name.startswith((".", "/", "~")) or name.count("/") > 1)
    if path and not Path(str(name)).expanduser().is_dir():
        raise QbenchError(
            f"backends.{backend.label}.checkpoint: {name} is not a folder; give one, or a hub id (owner/name)"
        )


def unavailable(config: RunConfig, cells: Sequence[Backend], machine: Environment) -> list[str]:
    """A line for each cell that cannot work on the device of this machine, which the others do not wait for."""
    device = target_of(config, machine).device
    reasons = {cell.label: cell.unavailable_on(device) for cell in cells}
    return [f"{label} will be unavailable: {reason}" for label, reason in reasons.items() if reason]


def check_models(config: RunConfig) -> None:
    """Refuse cells that cannot load the model, as far as its config.json is here and says so.

    Raises:
        QbenchError: the backend of a cell does not take such a model.
    """
    if content := _model_config(config.model):
        for backend in config.backends:
            backend.check_model(content)


def describe(plan: Plan) -> list[str]:
    """A plan in lines: the model, the cells with what they differ in, the measures with their settings, and notes."""
    config = plan.config
    lines = [f"{config.name}: {config.model.name}, device {config.device}, dtype {config.dtype}"]
    for backend in plan.cells:
        left_out = {"kind", "label", "python", "resources", *({"kv_cache"} if backend.kv_cache == "16bit" else ())}
        options = backend.model_dump(mode="json", exclude=left_out, exclude_none=True)
        shown = ", ".join(f"{key} {value}" for key, value in options.items())
        lines.append(f"  cell {backend.label}: {backend.kind}{f' ({shown})' if shown else ''}")
    for name, settings in config.measure:
        if settings is not None:
            values = settings.model_dump(mode="json", exclude_none=True)
            lines.append(f"  measure {name}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    return lines + [f"  note: {note}" for note in plan.notes]


def describe_all(plans: Sequence[Plan]) -> list[str]:
    """Several plans in lines, how many there are first."""
    lines = [f"{len(plans)} runs, {sum(len(plan.cells) for plan in plans)} cells"] if len(plans) > 1 else []
    return lines + [line for plan in plans for line in describe(plan)]


def check_lengths(config: RunConfig) -> None:
    """Refuse sequences that a model was not made for, where its config.json is here already.

    Raises:
        QbenchError: a measure asks for more tokens than the model's context has.
    """
    content = _model_config(config.model)
    most = context_length(content) if content else None
    tasks = config.measure.tasks
    if most and tasks and tasks.made and max(tasks.lengths) > most:
        raise QbenchError(
            f"measure.tasks.context_lengths: {max(tasks.lengths)} tokens, more than the model's context of "
            f"{most}; ask for {most} or fewer"
        )
    for name in LENGTHS:
        measure = getattr(config.measure, name)
        if most and measure and getattr(measure, "new_tokens", 0) >= most:
            raise QbenchError(
                f"measure.{name}.new_tokens: {measure.new_tokens}, and the context has {most} tokens for prompt "
                "and new ones; set it to fewer"
            )
        if most and measure and measure.seq_len > most:
            raise QbenchError(
                f"measure.{name}.seq_len: {measure.seq_len} tokens, more than the model's context of {most}; set it to "
                f"{most} or less"
            )
        deepest = getattr(measure, "deepest", 0)
        if most and deepest and deepest + measure.seq_len > most:
            raise QbenchError(
                f"measure.{name}.depths: {deepest} tokens before a seq_len of {measure.seq_len} are more than the "
                f"model's context of {most}; set them to {most - measure.seq_len} or less"
            )
