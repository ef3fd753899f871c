import pytest

from qbench.errors import QbenchError
from qbench.run.ray.resources import Request, request
from tests.support.runs import run_config

CPU_NODE = {"CPU": 16.0, "memory": 64.0 * 2**30, "node:10.0.0.1": 1.0}
SMALL_NODE = {"CPU": 4.0, "memory": 8.0 * 2**30}
GPU_NODE = {"CPU": 64.0, "GPU": 8.0, "memory": 512.0 * 2**30, "h100": 8.0}
HEAD = {"CPU": 0.0, "memory": 4.0 * 2**30}


def asked(nodes: list[dict[str, float]], cell: dict[str, object] | None = None, **changes: object) -> Request:
    config = run_config(backends=[{"kind": "int4", **({"resources": cell} if cell else {})}], **changes)
    return request(config, config.backends[0], nodes)


def test_on_a_cpu_a_cell_has_a_whole_node() -> None:
    assert asked([HEAD, CPU_NODE, CPU_NODE]) == Request(cpus=16)
    assert asked([GPU_NODE], device="cpu") == Request(cpus=64)


def test_of_unlike_nodes_none_holds_two_cells() -> None:
    wanted = asked([SMALL_NODE, CPU_NODE])
    assert wanted.cpus == 16
    assert [wanted.fits(node) for node in (SMALL_NODE, CPU_NODE, GPU_NODE)] == [False, True, True]


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_on_cuda_a_cell_has_one_gpu_and_its_share_of_the_cpus(device: str) -> None:
    assert asked([CPU_NODE, GPU_NODE], device=device) == Request(cpus=8, gpus=1)
    two = asked([GPU_NODE], {"gpus": 2}, device=device)
    assert (two.cpus, two.gpus) == (16, 2)
    assert asked([{"CPU": 3.0, "GPU": 8.0}], device=device).cpus == 1


def test_a_cell_may_ask_for_other_things_than_its_run() -> None:
    of_run = {"cpus": 2, "memory_gib": 1.5, "custom": {"h100": 1}}
    assert asked([GPU_NODE], resources=of_run, device="cpu") == Request(2, 0, 1536 * 2**20, {"h100": 1})
    assert asked([GPU_NODE], {"memory_gib": 3, "custom": {}}, resources=of_run) == Request(2, 1, 3 * 2**30, {})


@pytest.mark.parametrize(
    ("nodes", "changes", "words"),
    [
        ([CPU_NODE], {"device": "cuda"}, r"backends\.int4: asks for GPU 1, and no node .* \(nodes: CPU 16, memory"),
        ([CPU_NODE], {"resources": {"cpus": 17}}, "asks for CPU 17"),
        ([CPU_NODE], {"resources": {"memory_gib": 65}}, "asks for memory"),
        ([GPU_NODE], {"resources": {"custom": {"a100": 1}}}, "asks for GPU 1, a100 1"),
        ([HEAD], {}, "asks for CPU, and no node of the cluster has that"),
        ([], {}, r"\(nodes: none\)"),
        ([GPU_NODE], {"device": "cuda:1"}, "Ray hands out the GPUs; use device: cuda"),
    ],
)
def test_what_no_node_has_is_said(nodes: list[dict[str, float]], changes: dict[str, object], words: str) -> None:
    with pytest.raises(QbenchError, match=words):
        asked(nodes, **changes)
