"""What else differs between two runs: model, machine, software, settings. Pure functions on their records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qbench.errors import QbenchError
from qbench.records.run import RunRecord

Group = Literal["model", "hardware", "software", "configuration"]

SPEED_SETTINGS = (
    "device", "device_map", "dtype", "threads", "measure.memory.batch_size", "measure.memory.seq_len",
    *(f"measure.throughput.{name}" for name in ("seq_len", "new_tokens", "decode", "kv_cache")),
)  # fmt: skip
"""Settings that decide speed and memory, beside those of the backends."""

CODE = "qbench.code"
"""The fact that stands for qbench's own code: software, and no configuration."""

BEFORE = {"throughput": {"kv_cache": "16bit"}, "sustained": {"kv_cache": "16bit"}}
"""What runs did that are older than a setting, by measure."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is another in the second run."""

    group: Group
    name: str
    """A dotted name for a setting."""
    first: str | None
    second: str | None
    """None: there is no such thing in that run."""


def differences(first: RunRecord, second: RunRecord) -> list[Difference]:
    """Model first, then hardware, software and configuration. A run's name and times are no difference."""
    pairs: dict[Group, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "model": (_model(first), _model(second)),
        "hardware": (_hardware(first), _hardware(second)),
        "software": (_software(first), _software(second)),
        "configuration": (_settings(first) | _hashes(first, second), _settings(second) | _hashes(second, first)),
    }
    return [
        Difference(group, name, _shown(one, name), _shown(other, name))
        for group, (one, other) in pairs.items()
        for name in [*one, *(name for name in other if name not in one)]
        if name not in one or name not in other or one[name] != other[name]
    ]


def check_same_model(first: RunRecord, second: RunRecord, remedy: str) -> None:
    """Raises QbenchError with the remedy if the weights of the two runs are not the same."""
    if first.model_fingerprint != second.model_fingerprint:
        same = "other weights under the same name" if first.model == second.model else "another model"
        raise QbenchError(f"{first.name} measured {first.model}, {second.name} {second.model}: {same}; {remedy}")


def check_same_conditions(first: RunRecord, second: RunRecord, remedy: str) -> None:
    """Raises QbenchError with the remedy if the speeds of the two runs were taken under different conditions."""
    for one in differences(first, second):
        decides = one.group == "hardware" or one.name.startswith("backends.") or one.name in SPEED_SETTINGS
        if decides and one.first is not None and one.second is not None:
            change = f"{one.name}: {one.first} → {one.second}"
            raise QbenchError(f"{first.name} and {second.name} differ in {change}; {remedy}")


def _model(record: RunRecord) -> dict[str, Any]:
    return {"name": record.model, "fingerprint": record.model_fingerprint}


def _hardware(record: RunRecord) -> dict[str, Any]:
    machine = record.environment
    # A kernel or a hypervisor keeps some of the memory to itself, another each time.
    memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    return {"device": record.hardware, "cpu": machine.cpu, "cores": machine.cores, "memory": memory}


def _software(record: RunRecord) -> dict[str, Any]:
    machine = record.environment
    found: dict[str, Any] = {"driver": machine.driver, "os": machine.os, "python": machine.python, **machine.versions}
    found |= {"commit": machine.git_commit and machine.git_commit[:12], "uncommitted changes": machine.git_dirty}
    found["code"] = str(record.facts[CODE]).removeprefix("sha256:")[:12] if CODE in record.facts else None
    return {name: value for name, value in found.items() if value is not None}


def _settings(record: RunRecord) -> dict[str, Any]:
    """The configuration by dotted names, backends by their labels, and the hashes of the texts that were read."""
    config = {key: value for key, value in record.config.items() if key != "name"}
    measures = {
        name: {**BEFORE.get(name, {}), **found} for name, found in (config.get("measure") or {}).items() if found
    }
    config["measure"] = measures
    backends = {str(one.get("label") or one.get("kind")): one for one in config.get("backends") or ()}
    settings = dict(_flat({**config, "backends": backends}))
    texts = {name: value for name, value in record.facts.items() if name.endswith(".text")}
    return settings | texts


def _hashes(record: RunRecord, other: RunRecord) -> dict[str, Any]:
    """Files by their content, and questions, where both runs have kept a hash: older runs kept none."""
    kept = record.facts.keys() & other.facts.keys() - {CODE}
    names = sorted(name for name in kept if _is_hash(record.facts[name]) and _is_hash(other.facts[name]))
    asked = {f"questions of {name}": found[:12] for name, found in record.asked.items() if name in other.asked}
    return {name: record.facts[name] for name in names} | asked


def _is_hash(fact: object) -> bool:
    return isinstance(fact, str) and "sha256:" in fact


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield name, value


def _shown(values: Mapping[str, Any], name: str) -> str | None:
    return str(values[name]) if name in values else None
