import os
import pkgutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import qbench.backends
from qbench.config import ModelConfig, PerplexityConfig, RunConfig, backend_kinds, load, matrix
from qbench.errors import QbenchError
from qbench.model import find
from tests.support.runs import run_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_named_after_their_file(path: Path) -> None:
    runs = matrix.load(path)
    assert [run.name for run in runs] == [path.stem] or all(run.name.startswith(f"{path.stem}-") for run in runs)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_workers_are_sent_what_the_file_says(path: Path) -> None:
    for run in matrix.load(path):
        assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_shipped_configurations_are_those_the_readme_names() -> None:
    assert {path.stem for path in CONFIGS} >= {"smoke", "tinyllama", "llama3-8b", "tinyllama-shape"}


def test_llama3_configuration_is_the_full_comparison() -> None:
    config = load.load(next(path for path in CONFIGS if path.stem == "llama3-8b"))
    assert [backend.kind for backend in config.backends] == ["fp16", "int4", "nf4", "awq", "gptq"]
    throughput, mmlu = config.measure.throughput, config.measure.mmlu
    assert throughput is not None
    assert mmlu is not None
    assert throughput.batch_sizes == (1, 8, 32)
    assert throughput.prompt_tokens + throughput.new_tokens == 2048
    assert (mmlu.num_fewshot, mmlu.partial) == (5, False)
    assert config.measure.perplexity == PerplexityConfig()


def test_every_kind_has_its_module_and_every_module_its_kind() -> None:
    modules = {module.name for module in pkgutil.iter_modules(qbench.backends.__path__)}
    kinds = {name.replace("_", "-") for name in modules if name != "base" and not name.startswith("_")}
    assert kinds == set(backend_kinds())


def test_label_defaults_to_the_kind() -> None:
    config = run_config(backends=[{"kind": "int4"}, {"kind": "int4", "group_size": 64, "label": "int4-g64"}])
    assert [backend.label for backend in config.backends] == ["int4", "int4-g64"]


def test_a_configuration_survives_json() -> None:
    config = run_config(measure={"throughput": {"seq_len": 64, "new_tokens": 8}})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("label", ["../x", "a/b", ".hidden", "", "a b", "x" * 81])
def test_labels_cannot_leave_the_results_folder(label: str) -> None:
    backend = {"kind": "fp16", "label": label or "/"}
    with pytest.raises(ValidationError):
        run_config(backends=[backend])
    with pytest.raises(ValidationError):
        run_config(name=label)


@given(name=st.text(max_size=90) | st.text("./\\a\n\0~ ", max_size=8))
def test_whatever_is_accepted_as_a_name_is_a_name_in_its_folder(name: str) -> None:
    try:
        config = run_config(name=name, backends=[{"kind": "fp16", "label": name or "/"}])
    except ValidationError:
        return
    for accepted in (config.name, config.backends[0].label):
        path = Path("/results", accepted)
        assert Path(os.path.normpath(path)) == path
        assert path.parent == Path("/results")
        assert not set(accepted) & set("/\\\n\0")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, "exactly one of id, path, demo and shape"),
        ({"id": "a/b", "path": "c"}, "found id and path"),
        ({"shape": "llama-3-8b"}, "add `weights: random`"),
        ({"demo": True, "weights": "random"}, "comes with its weights"),
        ({"demo": True, "revision": "main"}, "revision belongs to a hub id"),
    ],
)
def test_model_origin_is_one(model: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate(model)


def test_random_weights_have_no_accuracy() -> None:
    with pytest.raises(ValidationError, match="random weights has no accuracy"):
        run_config(model={"shape": "llama-3-8b", "weights": "random"}, measure={"mmlu": {}})


def test_random_weights_predict_nothing() -> None:
    with pytest.raises(ValidationError, match=r"measure\.perplexity: a model with random weights predicts nothing"):
        run_config(model={"shape": "llama-3-8b", "weights": "random"}, measure={"perplexity": {}})


def test_divergence_needs_a_cell_to_compare_with() -> None:
    backends = [{"kind": "int4"}, {"kind": "nf4"}]
    with pytest.raises(ValidationError, match=r"there is none; add `- kind: fp16` to backends, or set divergence to"):
        run_config(backends=backends, measure={"perplexity": {}})
    assert run_config(backends=backends, measure={"perplexity": {"divergence": False}}).reference is None
    first = run_config(
        backends=[*backends, {"kind": "fp16", "label": "a"}, {"kind": "fp16"}], measure={"perplexity": {}}
    )
    assert first.reference == first.backends[2]
    assert run_config(backends=backends).reference is None


@pytest.mark.parametrize("settings", [{"window": 1}, {"limit": 0}, {"top_k": 0}, {"divergence": None}, {"stride": 512}])
def test_impossible_perplexity_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        run_config(measure={"perplexity": settings})


def test_random_weights_have_no_accuracy_in_any_task() -> None:
    with pytest.raises(ValidationError, match=r"measure\.tasks: a model with random weights has no accuracy"):
        run_config(model={"shape": "llama-3-8b", "weights": "random"}, measure={"tasks": {"names": ["piqa"]}})


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({}, "names\n  Field required"),
        ({"names": []}, "at least 1 item"),
        ({"names": ["piqa", "arc_easy", "piqa"]}, "piqa is listed twice"),
        ({"names": ["mmlu"]}, "use measure.mmlu"),
        ({"names": ["piqa"], "data": {"pica": "x"}}, r"data: pica is not one of the names \(piqa\)"),
        ({"names": ["piqa"], "engine": "vllm"}, "'prefix' or 'stock'"),
    ],
)
def test_impossible_tasks_are_refused(tasks: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        run_config(measure={"tasks": tasks})


def test_labels_differ_also_on_file_systems_that_ignore_case() -> None:
    with pytest.raises(ValidationError, match="label int4 is used twice"):
        run_config(backends=[{"kind": "int4"}, {"kind": "nf4", "label": "INT4"}])


@pytest.mark.parametrize(
    "throughput",
    [
        {"batch_sizes": [8, 1]},
        {"batch_sizes": []},
        {"batch_sizes": [0]},
        {"seq_len": 64, "new_tokens": 64},
        {"trials": 0},
    ],
)
def test_impossible_throughput_settings_are_refused(throughput: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        run_config(measure={"throughput": throughput})


def test_shipped_shapes_are_the_published_ones() -> None:
    """Parameter counts as on the models' cards: 8.03 and 1.10 billion."""
    counts = {name: parameters(path) for name, path in find.shapes().items()}
    assert counts == {"llama-3-8b": 8_030_261_248, "tinyllama-1.1b": 1_100_048_384}


def parameters(path: Path) -> int:
    import json

    c = json.loads(path.read_text())
    hidden, inner, heads, kv_heads = (
        c[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    kv = hidden // heads * kv_heads
    layer = 2 * hidden * hidden + 2 * kv * hidden + 3 * inner * hidden + 2 * hidden
    return c["num_hidden_layers"] * layer + 2 * c["vocab_size"] * hidden + hidden


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cuda:1"}, "takes all GPUs that are visible, not cuda:1; use device: cuda"),
        ({"measure": {"throughput": {"decode": "graph"}}}, "a CUDA graph holds one GPU; use auto or eager"),
        ({"measure": {"sustained": {"decode": "graph"}}}, "measure.sustained.decode: a CUDA graph holds one GPU"),
        ({"measure": {"sustained": {"decode": "compiled"}}}, "measure.sustained.decode: a compiled step holds one GPU"),
    ],
)
def test_a_model_on_all_gpus_has_no_number_and_no_graph(changes: dict[str, object], words: str) -> None:
    assert run_config(device_map="auto").device_map == "auto"
    with pytest.raises(ValidationError, match=words):
        run_config(device_map="auto", **changes)


def test_resources_are_checked_and_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    head = "name: r\nmodel: {demo: true}\nresources: {cpus: 2, custom: {h100: 1}}\n"
    path.write_text(f"{head}backends: [{{kind: fp16, resources: {{gpu: 1}}}}]\n")
    with pytest.raises(QbenchError, match=r"backends\[0\]\.resources\.gpu: unknown key; did you mean gpus\?"):
        load.load(path)
    path.write_text(f"{head}backends: [{{kind: fp16, resources: {{gpus: -1}}}}]\n")
    with pytest.raises(QbenchError, match=r"backends\[0\]\.resources\.gpus: .* not -1"):
        load.load(path)
