"""What a figure depends on, and the key that stands for it.

A run is made of units: one trial of the throughput, one task, one measure. A unit is measured whole or not at all, and
kept under a key, a hash over everything that decides its figures. What has the same key need not be measured again;
what has another must not stand in the same table.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.config import Backend, RunConfig
from qbench.config.kinds import plugin_facts
from qbench.config.measures import Measure
from qbench.machine import environment
from qbench.machine.environment import Environment
from qbench.model import texts

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
    settings = backend.model_dump(mode="json", exclude={"label", "resources"}) | plugin_facts(backend.kind)
    facts |= {f"backends.{backend.label}.{name}": value for name, value in settings.items()}
    if backend.calibrates:
        settings = config.calibration.model_dump(mode="json", exclude={"text"})
        facts |= {f"calibration.{name}": value for name, value in settings.items()}
        facts["calibration.text"] = texts.identify(config.calibration.text or texts.default_text(config.model))
    return facts | _versions(backend, backend.libraries, machine)


def checkpoint_facts(config: RunConfig, backend: Backend, model_fingerprint: str, *, device: str, dtype: str) -> Facts:
    """What decides the weights that a backend makes of a model, where it runs: device type, dtype, libraries, code."""
    facts: Facts = {
        "model": model_fingerprint,
        "kind": backend.kind,
        "device": device,
        "dtype": dtype,
        "code": "-".join((code_hash(), *plugin_facts(backend.kind).values())),
        **{name: getattr(backend, name) for name in backend.quantization},
        **{f"versions.{name}": version for name, version in environment.versions(backend.libraries).items()},
    }
    if backend.calibrates:
        facts |= {"seed": config.seed, **config.calibration.model_dump(mode="json", exclude={"text"})}
        facts["text"] = texts.identify(config.calibration.text or texts.default_text(config.model))
    return facts


@functools.cache
def code_hash() -> str:
    """Of the sources that make quantized weights."""
    package = Path(__file__).parents[1]
    paths = [
        package / "model" / "calibration.py",
        package / "engine" / "torch" / "loaded.py",
        *(package / "backends").rglob("*.py"),
        *(package / "compat").rglob("*.py"),
        *(package / "int4").rglob("*"),
    ]
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.suffix in (".py", ".c", ".h", ".inc"):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def measure_facts(config: RunConfig, backend: Backend, name: str, machine: Environment) -> Facts:
    """What a measure's figures depend on besides the cell, and besides which of its units it is."""
    settings: Measure = getattr(config.measure, name)
    shared = settings.model_dump(mode="json", exclude=set(settings.countable))
    facts = {f"measure.{name}.{key}": value for key, value in shared.items()}
    if "text" in shared:
        facts[f"measure.{name}.text"] = texts.identify(shared["text"] or texts.default_text(config.model))
    for other in settings.repeats:
        facts |= measure_facts(config, backend, other, machine)
    return facts | _versions(backend, settings.used_libraries(), machine)


def units(config: RunConfig, backend: Backend, machine: Environment, model_fingerprint: str) -> dict[str, str]:
    """Key by name of all units of a cell, in order: `cell`, `throughput/b8/t0`, `mmlu`, `tasks/piqa`."""
    cell = cell_facts(config, backend, machine, model_fingerprint)
    found = {CELL: key(cell | measure_facts(config, backend, "memory", machine))}
    for name, settings in config.measure.of(backend).items():
        facts = cell | measure_facts(config, backend, name, machine)
        for unit in settings.units() if name != "memory" else ():
            whole = f"{name}/{unit}" if unit else name
            found[whole] = key(facts | {"unit": whole})
    return found


def run_facts(config: RunConfig, machine: Environment, model_fingerprint: str) -> Facts:
    """What the figures of any cell depend on."""
    facts: Facts = {}
    for backend in config.backends:
        facts |= cell_facts(config, backend, machine, model_fingerprint)
        for name in config.measure.of(backend):
            facts |= measure_facts(config, backend, name, machine)
    return facts


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for every fact that is another now, or none any more. What is new decides nothing that was measured."""
    return [
        f"{name}: {value!r} there, {repr(now[name]) + ' now' if name in now else 'not here now'}"
        for name, value in sorted(before.items())
        if name not in now or now[name] != value
    ]


def key(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the facts as JSON with sorted names, its first 32 hex digits."""
    text = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _versions(backend: Backend, libraries: tuple[str, ...], machine: Environment) -> Facts:
    """Of libraries where the cell runs; another interpreter has its own."""
    found = environment.versions_of(backend.python, libraries) if backend.python else machine.versions
    where = f"versions.{backend.label}." if backend.python else "versions."
    if not backend.python:  # What a registered kind needs is not among the packages that are looked for everywhere.
        found = environment.versions(set(libraries) - set(environment.PACKAGES)) | found
    return {f"{where}{library}": found.get(library) for library in libraries}
