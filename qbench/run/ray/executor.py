"""Runs cells on the nodes of a Ray cluster: each is an actor there that asks for the devices it needs.

The node runs the cell as a machine alone would (see `qbench.run.ray.actor`); what its worker writes comes here while it
runs, byte by byte, into the same files. When a node dies, what its cell's attempt wrote is dropped, and the cell begins
again on another node. Ray is imported only here, and only when it is asked for.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qbench import DISTRIBUTION, __version__
from qbench.config import Backend, RunConfig
from qbench.errors import QbenchError, describe_fault
from qbench.machine import environment
from qbench.machine.environment import Environment
from qbench.run import fingerprint
from qbench.run.events import ProgressEvent
from qbench.run.executor import Ending
from qbench.run.job import Job
from qbench.run.local import GRACE_S, POLL_S
from qbench.run.ray import resources
from qbench.run.ray.actor import INHERITED, NodeCell, NodeFacts, Parcel, check_version, facts
from qbench.run.ray.resources import Request
from qbench.run.ray.staging import Mirror

ATTEMPTS = 3
"""Times a cell is begun: once, and again after a node died under it."""

KNOCK_S = 10.0
"""Seconds in which the head of a cluster takes a connection."""

PROBE_S = 120.0
"""Seconds a node has to say who it is: its first answer starts an interpreter and reads the package."""

ROOM_S = 60.0
"""Seconds for which a cell that waits bears that no living node could ever hold it."""

AS_THE_NODE = {"env_vars": {"RAY_worker_niceness": "0"}}
"""Ray runs workers at a niceness of 15 unless told otherwise: what else the node does would slow the cells."""


class StoppedError(Exception):
    """The run was interrupted while the cell ran; there is no row of it."""


class NodeLostError(Exception):
    """The node, or the actor on it, died under the cell."""


@contextmanager
def connect(address: str) -> Iterator[RayExecutor]:
    """An executor on the cluster at `address`, until the end of the block.

    Args:
        address: `auto`: the cluster that this machine belongs to; `local`: one of this machine alone, started and ended
            here; `HOST:PORT` or `ray://HOST:PORT`: that one.

    Raises:
        QbenchError: Ray is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":  # It is nobody else's, and whoever reaches a cluster can run anything: only the loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError as error:
        install = f"pip install '{DISTRIBUTION}[ray]'"
        raise QbenchError(f"--executor ray: Ray is not installed; `{install}` installs it") from error
    alone: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
    except ImportError as error:
        raise QbenchError(f"--address {address}: needs `pip install 'ray[client]=={ray.__version__}'`") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise QbenchError(
            f"--address {address}: no Ray cluster answers ({_first_line(error)}); `ray start --head` begins one here, "
            "and --address local uses this machine alone"
        ) from error
    executor = RayExecutor(ray)
    try:
        yield executor
    finally:
        executor.stop()
        ray.shutdown()


class RayExecutor:
    """Runs cells side by side, as many as the cluster has room for; see `connect`."""

    side_by_side = True

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._stopping = threading.Event()
        self._code = fingerprint.source_hash()
        self._machine = environment.detect()

    def prepare(self, config: RunConfig, cells: Sequence[Backend], say: Callable[[str], None]) -> Environment:
        """Make sure that every cell has a node, and that every node runs this very code.

        Returns:
            The machine of a node with a GPU where there is one, else of the first.

        Raises:
            QbenchError: no node has what a cell asks for; or a node does not answer, or has other code.
        """
        perplexity = config.measure.perplexity
        if perplexity and perplexity.divergence == "full":
            raise QbenchError(
                "measure.perplexity.divergence: full may leave more than can be sent between nodes; set it to true, "
                "which compares whole vocabularies where they are small, or run on one machine"
            )
        for backend in cells:
            resources.request(config, backend, self._nodes())
        found = self._facts()
        for node in found:
            check_version(__version__, self._code, node)
        for node in found[1:]:
            if _figures(node.environment) != _figures(found[0].environment):
                say(f"{node.host} is not like {found[0].host}: compare figures of the same `host` only")
        self._machine = next((node.environment for node in found if node.environment.gpus), found[0].environment)
        return self._machine

    def run(self, job: Job, out: Path, log: Path, progress: Callable[[ProgressEvent], None]) -> Ending | None:
        """Run the cell on a node, and on another one if that dies, at most `ATTEMPTS` times.

        Raises:
            StoppedError: `stop` was called.
        """
        cell = Mirror(job, out, log, progress)
        reason = ""
        for _ in range(ATTEMPTS):
            cell.restore()
            try:
                return self._attempt(cell)
            except NodeLostError as error:
                reason = str(error)
            except QbenchError as error:
                return Ending("error", str(error))
        cell.restore()
        return Ending("crashed", f"the cluster lost the cell {ATTEMPTS} times; the last time: {reason}")

    def stop(self) -> None:
        """Have every `run` end its actor, and with it the worker, and raise `StoppedError`."""
        self._stopping.set()

    def _attempt(self, cell: Mirror) -> Ending | None:
        ray = self._ray
        asked = resources.request(cell.job.config, cell.job.backend, self._nodes())
        actor, begun = self._place(asked), False
        try:
            reference = ray.put(cell.reference()) if cell.compares else {}
            cell.progress(ProgressEvent(what="waiting for a node of the cluster", done=0, total=1))
            refusal = self._get(actor.start.remote(self._parcel(cell, asked), reference), needs=asked)
            begun = True
            if refusal is not None:
                return Ending("error", refusal)
            while True:
                news = self._get(actor.news.remote(*cell.position))
                cell.take(news.events, news.log)
                if news.over:
                    break
                if not (news.events or news.log):
                    self._stopping.wait(POLL_S)
            results = self._get(actor.results.remote())
            cell.keep(results.files, results.answers, results.reference)
            ending: Ending | None = results.ending
            return ending
        except ray.exceptions.OutOfMemoryError as error:
            return Ending("oom", _first_line(error))
        except ray.exceptions.RayTaskError as error:
            return Ending(*describe_fault(error.cause))
        except ray.exceptions.RayError as error:
            raise NodeLostError(f"{type(error).__name__}: {_first_line(error)}") from error
        finally:
            self._end(actor, begun=begun)

    def _place(self, asked: Request) -> Any:
        """An actor for a cell, which waits for room."""
        options = {
            "num_cpus": asked.cpus,
            "num_gpus": asked.gpus,
            "memory": asked.memory_bytes or None,
            "resources": asked.custom or None,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "runtime_env": AS_THE_NODE,
        }
        return self._ray.remote(NodeCell).options(**options).remote()

    def _parcel(self, cell: Mirror, asked: Request) -> Parcel:
        variables = {name: os.environ.get(name) for name in INHERITED}
        if not asked.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides GPUs only from those that ask for one.
        return Parcel(
            job=cell.job.model_dump_json(),
            version=__version__,
            code=self._code,
            machine=self._machine,
            cwd=os.getcwd(),
            variables=variables,
            files=cell.files,
            answers=cell.answers(),
        )

    def _get(self, ref: Any, *, needs: Request | None = None) -> Any:
        """The value of a reference, unless the run is stopped before it is there.

        Raises:
            StoppedError: it was.
            QbenchError: the cell waits for what it `needs`, and for `ROOM_S` no living node could have given it.
        """
        last_seen = time.monotonic()
        while True:
            if self._stopping.is_set():
                raise StoppedError
            try:
                return self._ray.get(ref, timeout=POLL_S)
            except self._ray.exceptions.GetTimeoutError:
                if needs is None or any(needs.fits(node) for node in self._nodes()):
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > ROOM_S:
                    raise QbenchError(f"no node is left in the cluster that has {needs}; start one") from None

    def _end(self, actor: Any, *, begun: bool) -> None:
        """End the actor; what it started ends with it."""
        if begun:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(actor.close.remote(), timeout=4 * GRACE_S)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _facts(self) -> list[NodeFacts]:
        """Those of every living node with CPUs, which alone can run cells."""
        ray = self._ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        if not nodes:
            raise QbenchError("the cluster has no node with CPUs; start one with `ray start --address=HOST:PORT`")
        ask = ray.remote(num_cpus=0, max_retries=0, runtime_env=AS_THE_NODE)(facts)
        asked = [ask.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote() for node in nodes]
        found: list[NodeFacts] = []
        for node, answer in zip(nodes, asked, strict=True):
            try:
                found.append(ray.get(answer, timeout=PROBE_S))
            except ray.exceptions.RayError as error:
                raise QbenchError(
                    f"the node {node['NodeManagerHostname']} cannot run cells ({_first_line(error)}); "
                    "install the same qbench there, or take it out of the cluster"
                ) from error
        return found


def _knock(address: str) -> None:
    """See whether anything listens there, for Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
        ValueError: that is no address.
    """
    if address not in ("auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def _figures(machine: Environment) -> dict[str, Any]:
    """What decides figures: processors, GPUs, the versions of libraries."""
    return machine.model_dump(include={"cpu", "cpu_features", "cores", "gpus", "driver", "versions"})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
