"""What a figure depends on, and the key that stands for it.

A run is made of units: one trial of the throughput, one task, one measure. A unit is measured whole or not at all, and
kept under a key, a hash over everything that decides its figures. What has the same key need not be measured again;
what has another must not stand in the same table.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.config import Backend, RunConfig
from qbench.config.base import Measure
from qbench.config.kinds import plugin_facts
from qbench.machine import environment
from qbench.machine.environment import Environment
from qbench.model import content, hub, texts

PACKAGE = Path(__file__).parents[1]

QUANTIZING = ("backends", "compat", "config/resolve.py", "demo/calibration.txt", "engine", "int4", "model")
"""What makes quantized weights, below the package."""

MEASURING = (
    *("analysis/formulas.py", "analysis/load.py", "config/needles.py", "machine", "measure", "records/answers.py"),
    *("run/cell.py", "run/loading.py"),
    *("demo/heldout.txt", "demo/mmlu", "demo/tasks"),
    *QUANTIZING,
)
"""What makes figures: whoever changes a line of it measures again."""

FILES = ("checkpoint", "file", "python")
"""Settings of a cell that are paths: their content counts, not where they are."""

CODE = "qbench.code"
"""The fact that stands for `MEASURING`."""

COMPILED = (".so", ".pyd", ".dylib")

CELL = "cell"
"""The unit of a cell's own row: loading, and the memory of the first forward."""

Facts = dict[str, Any]
"""What figures depend on, by dotted name."""


def cell_facts(config: RunConfig, backend: Backend, machine: Environment, model_fingerprint: str) -> Facts:
    """What every figure of a cell depends on, whatever is measured."""
    facts: Facts = {
        "model.fingerprint": model_fingerprint,
        "model.name": config.model.name,
        "hardware": environment.hardware_label(machine, config.device),
        **{name: getattr(config, name) for name in ("device", "device_map", "dtype", "seed", "threads")},
    }
    if environment.runs_on_gpu(machine, config.device):
        facts["driver"] = machine.driver
    else:  # by which the kernels for CPUs are chosen
        facts["cpu_features"] = ", ".join(machine.cpu_features)
    settings = backend.model_dump(mode="json", exclude={"label", "resources"}) | plugin_facts(backend.kind)
    settings |= {name: _identify(settings[name]) for name in FILES if settings.get(name)}
    if isinstance(command := settings.get("command"), list):
        settings["command"] = [_identify(part) if Path(part).is_file() else part for part in command]
    facts |= {f"backends.{backend.label}.{name}": value for name, value in settings.items()}
    facts[CODE] = code_hash(MEASURING)
    if backend.calibrates:
        settings = config.calibration.model_dump(mode="json", exclude={"text"})
        facts |= {f"calibration.{name}": value for name, value in settings.items()}
        facts["calibration.text"] = texts.identify(config.calibration.text or texts.default_text(config.model))
    facts |= {f"backends.{backend.label}.{name}": value for name, value in _quantizer_versions(backend).items()}
    return facts | _versions(backend, ("python", *backend.used_libraries), machine)


def checkpoint_facts(config: RunConfig, backend: Backend, model_fingerprint: str, *, device: str, dtype: str) -> Facts:
    """What decides the weights that a backend makes of a model, where it runs: device type, dtype, libraries, code."""
    facts: Facts = {
        "model": model_fingerprint,
        "kind": backend.kind,
        "device": device,
        "dtype": dtype,
        "code": "-".join((code_hash(QUANTIZING), *plugin_facts(backend.kind).values())),
        **{name: getattr(backend, name) for name in backend.quantization},
        **{f"versions.{name}": version for name, version in environment.versions(backend.libraries).items()},
        **_quantizer_versions(backend),
    }
    if backend.calibrates:
        facts |= {"seed": config.seed, **config.calibration.model_dump(mode="json", exclude={"text"})}
        facts["text"] = texts.identify(config.calibration.text or texts.default_text(config.model))
    return facts


@functools.cache
def code_hash(parts: tuple[str, ...]) -> str:
    """Of the files below these folders and files of the package: Python, C, CUDA, compiled libraries, data."""
    return content.identify(_code_files(parts), PACKAGE)


@functools.cache
def source_hash() -> str:
    """Of all files of the package but its compiled libraries, whose bytes differ from one machine to the next."""
    return content.identify((path for path in _code_files(("",)) if path.suffix not in COMPILED), PACKAGE)


def _code_files(parts: tuple[str, ...]) -> list[Path]:
    paths = {path for part in parts for path in [PACKAGE / part, *(PACKAGE / part).rglob("*")]}
    return [path for path in paths if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")]


def _identify(name: str) -> str:
    """What tells weights, or an interpreter, from others: the content of a path, the commit of a name on the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return content.fingerprint(path)
    return f"{path.name} sha256:{content.file_hash(path)}" if path.is_file() else hub.identify(name)


def measure_facts(config: RunConfig, backend: Backend, name: str, machine: Environment, unit: str = "") -> Facts:
    """What the figures of a measure's unit, or of all of them, depend on besides the cell."""
    settings: Measure = getattr(config.measure, name)
    files = settings.data_files(unit)
    named = {key.partition(".")[0] for key in settings.data_files("")}
    shared = settings.model_dump(mode="json", exclude={*settings.countable, *named})
    facts = {f"measure.{name}.{key}": value for key, value in shared.items()}
    if "text" in shared:
        facts[f"measure.{name}.text"] = texts.identify(shared["text"] or texts.default_text(config.model))
    for key, paths in files.items():
        there = [path.absolute() for path in paths if path.is_file()]
        root = Path(os.path.commonpath([path.parent for path in there])) if there else Path()
        found = content.identify(there, root) if there else str(settings.model_dump(mode="json")[key.split(".")[0]])
        facts[f"measure.{name}.{key}"] = found
    facts |= {
        f"measure.{name}.{key}": hub.identify(repo, kind="dataset") for key, repo in settings.hub_datasets().items()
    }
    for other in settings.repeats:
        facts |= measure_facts(config, backend, other, machine)
    return facts | _versions(backend, settings.used_libraries(unit), machine)


def units(config: RunConfig, backend: Backend, machine: Environment, model_fingerprint: str) -> dict[str, str]:
    """Key by name of all units of a cell, in order: `cell`, `throughput/b8/t0`, `mmlu`, `tasks/piqa`."""
    cell = cell_facts(config, backend, machine, model_fingerprint)
    found = {CELL: key(cell | measure_facts(config, backend, "memory", machine))}
    for name, settings in config.measure.of(backend).items():
        compared = _reference_facts(config, backend, name, machine, model_fingerprint)
        for unit in settings.units() if name != "memory" else ():
            whole = f"{name}/{unit}" if unit else name
            facts = cell | compared | measure_facts(config, backend, name, machine, unit)
            found[whole] = key(facts | {"unit": whole})
    return found


def _reference_facts(
    config: RunConfig, backend: Backend, name: str, machine: Environment, model_fingerprint: str
) -> Facts:
    """Of the 16-bit cell, whatever its label, for a measure that compares its predictions with a cell's own."""
    reference = config.reference
    if name != "perplexity" or reference is None or reference.label == backend.label:
        return {}
    unnamed = reference.model_copy(update={"label": "reference"})
    return {"reference": key(cell_facts(config, unnamed, machine, model_fingerprint))}


def run_facts(config: RunConfig, machine: Environment, model_fingerprint: str) -> Facts:
    """What the figures of any cell depend on."""
    facts: Facts = {}
    for backend in config.backends:
        facts |= cell_facts(config, backend, machine, model_fingerprint)
        for name in config.measure.of(backend):
            facts |= measure_facts(config, backend, name, machine)
    return facts


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for every fact that is another now, or none any more. What is new decides nothing that was measured.

    Files of other content are left out, see `rewritten`.
    """
    known = rewritten(before, now)
    return [
        f"{name}: {value!r} there, {repr(now[name]) + ' now' if name in now else 'not here now'}"
        for name, value in sorted(before.items())
        if name not in known and (name not in now or now[name] != value)
    ]


def rewritten(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The facts that name the same files as before, whose content is another: the configuration is the same."""
    hashed = {CODE: "sha256:", **before}
    return [
        name
        for name, value in sorted(now.items())
        if name in hashed and value != hashed[name] and _file(value) is not None and _file(value) == _file(hashed[name])
    ]


def _file(fact: Any) -> str | None:
    """What a fact that is a hash of files calls them, possibly nothing; None for other facts."""
    called, found, _hash = fact.rpartition("sha256:") if isinstance(fact, str) else ("", "", "")
    return called if found else None


def key(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the facts as JSON with sorted names, its first 32 hex digits."""
    text = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _quantizer_versions(backend: Backend) -> Facts:
    """Of what makes a checkpoint in an interpreter of its own."""
    if not (backend.python and backend.quantizer_libraries):
        return {}
    found = environment.versions_of(backend.python, backend.quantizer_libraries)
    return {f"quantizer.{name}": found.get(name) for name in backend.quantizer_libraries}


def _versions(backend: Backend, libraries: tuple[str, ...], machine: Environment) -> Facts:
    """Of libraries, and of `python`, where the cell runs; another interpreter has its own."""
    if backend.worker_python:
        found = environment.versions_of(backend.worker_python, libraries)
        python = environment.python_of(backend.worker_python)
    else:  # What a registered kind needs is not among the packages that are looked for everywhere.
        found = environment.versions(set(libraries) - {*environment.PACKAGES, "python"}) | machine.versions
        python = machine.python
    where = f"versions.{backend.label}." if backend.worker_python else "versions."
    return {f"{where}{library}": python if library == "python" else found.get(library) for library in libraries}
