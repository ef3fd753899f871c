import pytest

from qbench.config.resolve import decode_mode, device, device_type, dtype
from qbench.errors import QbenchError


@pytest.mark.parametrize(
    ("asked", "cuda", "expected"),
    [
        ("auto", True, "cuda:0"),
        ("auto", False, "cpu"),
        ("cuda", False, "cuda:0"),
        ("cuda:3", True, "cuda:3"),
        ("cpu", True, "cpu"),
    ],
)
def test_auto_is_the_first_gpu_where_there_is_one(asked: str, cuda: bool, expected: str) -> None:
    assert device(asked, cuda=cuda) == expected
    assert device_type(expected) == expected.partition(":")[0]


def test_auto_is_float16_on_cuda_and_bfloat16_elsewhere() -> None:
    assert (dtype("auto", "cuda"), dtype("auto", "cpu")) == ("float16", "bfloat16")
    assert dtype("float32", "cuda") == "float32"


def test_auto_decodes_by_a_graph_where_one_can_be_captured() -> None:
    assert decode_mode("auto", "cpu") == "eager"
    assert decode_mode("auto", "cuda") == "graph"
    assert decode_mode("auto", "cuda", device_map_auto=True) == "eager"
    assert decode_mode("auto", "cuda", kv_cache="int8") == "eager"
    assert decode_mode("eager", "cuda") == "eager"
    assert [decode_mode("compiled", device) for device in ("cpu", "cuda")] == ["compiled", "compiled"]
    with pytest.raises(QbenchError, match="graph needs a CUDA device"):
        decode_mode("graph", "cpu")
