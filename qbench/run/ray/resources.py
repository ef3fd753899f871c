"""What a cell asks of a cluster's node, so that nothing runs beside it that would spoil its figures.

A cell has one device to itself: on a CPU a whole node, on CUDA one GPU and that GPU's share of its node's CPUs. Where
nodes differ, the largest share is asked for, and smaller nodes stand idle: figures of unlike machines do not compare.
`resources:` in the configuration, of the run or of a cell, overrides each of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qbench.config import Backend, Resources, RunConfig
from qbench.errors import QbenchError

Node = Mapping[str, float]
"""Everything a node has, free or not, by Ray's names: CPU, GPU, memory (bytes), and resources of its own."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a cell asks for."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: int = 0
    custom: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.named.items()) or "CPU"

    @property
    def named(self) -> dict[str, float]:
        """By Ray's names, without what is not asked for."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes), **self.custom}
        return {name: amount for name, amount in asked.items() if amount > 0}

    def fits(self, node: Node) -> bool:
        """Whether a node has as much, were it idle."""
        return all(node.get(name, 0.0) >= amount for name, amount in self.named.items())


def request(config: RunConfig, backend: Backend, nodes: Sequence[Node]) -> Request:
    """What a cell asks of one of `nodes`.

    Raises:
        QbenchError: no node has it, or the device is one that Ray does not let a cell choose.
    """
    if config.device.startswith("cuda:"):
        raise QbenchError(f"device: {config.device}: on a cluster Ray hands out the GPUs; use device: cuda")
    wanted = _wanted(config.resources, backend.resources)
    gpus = _default_gpus(config.device, nodes) if wanted.gpus is None else wanted.gpus
    memory = round((wanted.memory_gib or 0) * 2**30)
    bare = Request(wanted.cpus or 0.0, gpus, memory, wanted.custom)
    fitting = [node for node in nodes if node.get("CPU", 0.0) > 0 and bare.fits(node)]
    if not fitting:
        had = "; ".join(_words(node) for node in nodes) or "none"
        raise QbenchError(
            f"backends.{backend.label}: asks for {bare}, and no node of the cluster has that (nodes: {had}); "
            "change `resources:` or `device:`, or start such a node"
        )
    if wanted.cpus is not None:
        return bare
    return Request(max(_share(node, gpus) for node in fitting), gpus, memory, wanted.custom)


def _wanted(of_run: Resources, of_cell: Resources | None) -> Resources:
    """What the configuration says: the cell's word before that of its run."""
    if of_cell is None:
        return of_run
    return of_run.model_copy(update={key: getattr(of_cell, key) for key in of_cell.model_fields_set})


def _default_gpus(device: str, nodes: Sequence[Node]) -> float:
    if device == "auto":
        return float(any(node.get("GPU", 0.0) >= 1 for node in nodes))
    return float(device == "cuda")


def _share(node: Node, gpus: float) -> float:
    """The CPUs that come with `gpus` of a node's GPUs, whole ones; with none, all of them."""
    cpus = node["CPU"]
    return float(max(1, math.floor(cpus * gpus / node["GPU"]))) if gpus else cpus


def _words(node: Node) -> str:
    shown = {name: amount for name, amount in node.items() if not name.startswith(("node:", "object_store"))}
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(shown.items()))
