"""What we rely on of other libraries beyond their public interfaces is there, and means what we think.

When one of these fails after an upgrade, mend the module of `qbench.compat` that it tests.
"""

import ctypes
import importlib
import os
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from qbench.compat import lm_eval as harness
from qbench.compat.bitsandbytes import state_tensors
from qbench.compat.lean import OPTIONAL
from qbench.compat.torch import allocations
from qbench.compat.transformers import DynamicLayer, attention, ignored_on_load, kept_dtypes, renamer
from qbench.config import MMLUConfig
from qbench.measure.lm_eval.mmlu_data import load_tasks, task_manager
from qbench.run import worker
from qbench.run.job import Job
from tests.support.runs import run_config

TINY = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8,
    "num_key_value_heads": 2,
}  # fmt: skip


class Kept(LlamaForCausalLM):  # type: ignore[misc]  # transformers has no types
    """A model that holds a norm in float32, and knows of a tensor that it does not need."""

    _keep_in_fp32_modules_strict = frozenset({"model.norm"})
    _keys_to_ignore_on_load_unexpected = (r"^extra$",)


def tiny_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**TINY))


def shapes_of(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_torch_tells_every_allocation_and_free_in_order() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        first = torch.empty(4096, dtype=torch.uint8)
        second = torch.empty(8192, dtype=torch.uint8)
        del first
        del second
    assert allocations(profile) == [4096, 8192, -4096, -8192]


def test_a_layer_of_a_cache_holds_what_we_know_of() -> None:
    cache = DynamicCache(config=tiny_llama().config)
    (layer,) = cache.layers
    assert type(layer) is DynamicLayer
    keys = torch.zeros(1, 2, 3, 8)
    layer.update(keys, keys + 1)
    longer, values = layer.update(keys + 2, keys + 3)
    assert set(vars(layer)) - {"dtype"} == {"keys", "values", "device", "is_initialized"}  # no dtype from 5.24 on
    assert longer is layer.keys
    assert values is layer.values
    assert torch.equal(longer, torch.cat([keys, keys + 2], dim=2))
    assert (layer.is_initialized, layer.device) == (True, keys.device)


def test_ggmls_tensor_is_laid_out_as_we_have_it() -> None:
    llama_cpp = pytest.importorskip("qbench.compat.llama_cpp")
    left_out = 16  # `extra`, and padding
    object_bytes = 32  # `ggml_object`, before every tensor
    llama_cpp.libggml.ggml_tensor_overhead.restype = ctypes.c_size_t
    assert llama_cpp.libggml.ggml_tensor_overhead() == object_bytes + ctypes.sizeof(llama_cpp.Tensor) + left_out


def test_attention_is_the_implementation_asked_for(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    for name in ("sdpa", "eager"):
        assert attention(LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation=name)) == name


def test_dtypes_and_strays_are_those_of_a_model_that_transformers_loads(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"extra": torch.zeros(1), "other": torch.zeros(1)}, file, metadata={"format": "pt"})
    model, found = Kept.from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    plan = kept_dtypes(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        expected = next((dtype for pattern, dtype in plan if pattern.search(name)), torch.bfloat16)
        assert parameter.dtype == expected, name
    assert model.model.norm.weight.dtype == torch.float32
    assert set(found["unexpected_keys"]) == {"other"}
    assert ignored_on_load(model, "unexpected") == (r"^extra$",)
    assert ignored_on_load(tiny_llama(), "missing") == ()


def test_names_of_a_checkpoint_become_those_of_the_model() -> None:
    llama = tiny_llama()
    rename = renamer(llama, shapes_of(llama))
    assert rename("model.layers.0.mlp.up_proj.weight") == ("model.layers.0.mlp.up_proj.weight", None)
    # As `AutoModel` saves it, without the head.
    assert rename("layers.0.mlp.up_proj.weight") == ("model.layers.0.mlp.up_proj.weight", None)
    with torch.device("meta"):
        mixtral = MixtralForCausalLM(MixtralConfig(**TINY, num_local_experts=2))
    name, part_of = renamer(mixtral, shapes_of(mixtral))("model.layers.0.block_sparse_moe.experts.1.w2.weight")
    assert name in mixtral.state_dict()
    assert part_of is not None


def test_the_index_of_tasks_tells_tasks_from_tags() -> None:
    manager = TaskManager(include_defaults=False, include_path=Path(lm_eval.tasks.__file__).parent / "arc")
    file = harness.task_file(manager, "arc_easy")
    assert file is not None
    assert (file["task"], file["output_type"]) == ("arc_easy", "multiple_choice")
    assert harness.is_task(manager, "arc_easy")
    assert harness.tagged(manager, "arc_easy") == []
    assert harness.task_file(manager, "ai2_arc") is None
    assert not harness.is_task(manager, "ai2_arc")
    assert harness.tagged(manager, "ai2_arc") == ["arc_challenge", "arc_easy"]
    assert (harness.task_file(manager, "nothing"), harness.tagged(manager, "nothing")) == (None, [])


def test_a_task_has_its_questions_and_examples() -> None:
    (task,) = load_tasks(MMLUConfig(data="demo", subjects=("invented_birds",)))
    assert (harness.questions(task), harness.examples(task)) == (200, 5)
    assert not harness.draws_from_questions(task)
    template = harness.mmlu_template()
    assert (template["dataset_path"], template["fewshot_split"], template["test_split"]) == ("cais/mmlu", "dev", "test")
    assert len(list(harness.MMLU_FILES.glob("mmlu_*.yaml"))) == 57


def test_evaluations_do_not_describe_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[str] = []
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: described.append("once") or "")

    def evaluate() -> None:
        tasks = load_tasks(MMLUConfig(data="demo", subjects=("invented_birds",)))
        lm_eval.simple_evaluate(model=DummyLM(), tasks=tasks, limit=1, bootstrap_iters=0, task_manager=task_manager())

    with harness.without_environment():
        evaluate()
    assert described == []
    evaluate()
    assert described == ["once"]


def test_a_quantized_weight_holds_its_scales_and_those_of_the_scales() -> None:
    _, state = quantize_4bit(torch.randn(64, 512), quant_type="nf4", compress_statistics=True)
    nested = state.state2
    held = [state.absmax, state.code, state.offset, nested.absmax, nested.code]
    assert {id(tensor) for tensor in state_tensors(state)} == {id(tensor) for tensor in held}


BARE = "import os, gptqmodel; print(os.environ.get('CUDA_DEVICE_ORDER'), os.environ.get('PYTORCH_ALLOC_CONF'))"
OURS = """
import os
from qbench.compat import gptqmodel as ours
assert all(os.environ[name] == value for name, value in ours.VARIABLES.items()), "changed at import"
import gptqmodel
from gptqmodel.nn_modules.hooked_linear import STOP_FORWARD_EXCEPTION
pool = gptqmodel.get_device_thread_pool()
assert gptqmodel._DEVICE_THREAD_POOL is pool
try:
    raise STOP_FORWARD_EXCEPTION
except Exception:
    pass
assert STOP_FORWARD_EXCEPTION.__traceback__ is not None
ours.let_go()
assert STOP_FORWARD_EXCEPTION.__traceback__ is None
assert gptqmodel.get_device_thread_pool() is not pool
print("fine")
"""


def run_alone(code: str) -> str:
    """What a process says in which gptqmodel has not been imported and its variables are not set; its last line."""
    names = ("CUDA_DEVICE_ORDER", "PYTORCH_ALLOC_CONF", "HF_HOME", "HF_HUB_CACHE", "GPTQMODEL_CPU_WORKERS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.long  # nothing that a user sees, in a process that imports all of gptqmodel
def test_gptqmodel_still_sets_variables_of_the_whole_process() -> None:
    """Where it no longer does, `VARIABLES` can go."""
    assert run_alone(BARE).split()[0] == "PCI_BUS_ID"


def test_gptqmodel_leaves_our_variables_and_lets_go_of_a_model() -> None:
    assert run_alone(OURS) == "fine"


LEAN = """
import sys
from qbench.compat import lean
lean.import_transformers({"torch", "torchao"})
print(sorted(lean.OPTIONAL.keys() & sys.modules.keys()))
from transformers import LlamaForCausalLM
from transformers.utils import is_hqq_available
print(sorted(lean.OPTIONAL.keys() & sys.modules.keys()))
import hqq, scipy
print(is_hqq_available())
"""


def test_transformers_leaves_out_what_a_cell_does_not_name_and_others_can_still_import_it() -> None:
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['torchao']", "['torchao']", "True"]


def test_transformers_imports_them_if_nobody_leaves_them_out() -> None:
    """Once it does not, `qbench.compat.lean` has nothing left to do."""
    for name, importer in OPTIONAL.items():
        importlib.import_module(importer)
        assert name in sys.modules, name


@pytest.mark.parametrize(
    ("cell", "throughput", "named"),
    [
        ({"kind": "fp16"}, {}, set()),
        ({"kind": "torchao"}, {}, {"torchao"}),
        ({"kind": "int4", "kv_cache": "int8"}, {}, {"hqq"}),
        ({"kind": "fp16"}, {"kv_cache": "int4"}, {"hqq"}),
    ],
)
def test_a_worker_knows_what_its_cell_and_its_measures_name(
    cell: dict[str, str], throughput: dict[str, str], named: set[str]
) -> None:
    settings = run_config(backends=[cell], measure={"throughput": throughput})
    job = Job(
        config=settings, label=settings.backends[0].label, folder=Path(), answers=Path(), reference=Path(),
        model_fingerprint="", units={}, missing=(),
    )  # fmt: skip
    assert worker.needed(job) & OPTIONAL.keys() == named


def test_distributions_come_without_the_package_of_scipy_and_are_its_own() -> None:
    script = """
import sys
from qbench.compat import scipy as found
assert not {"scipy.special", "numpy.f2py", "numpy.testing"} & set(sys.modules), "imported"
import scipy.special
assert all(getattr(scipy.special, name) is getattr(found, name) for name in found.__all__)
import scipy.stats
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_beside_other_threads_the_whole_package_of_scipy_is_imported() -> None:
    """They could meet the package while it is empty."""
    script = """
import sys, threading
event = threading.Event()
thread = threading.Thread(target=event.wait)
thread.start()
from qbench.compat.scipy import stdtrit
event.set()
thread.join()
assert sys.modules["scipy.special"].stdtrit is stdtrit
"""
    subprocess.run([sys.executable, "-c", script], check=True)
