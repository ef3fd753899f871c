import json
from pathlib import Path

import pytest

from qbench.config import RunConfig, load
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.machine.environment import GPU, Environment
from qbench.plan import starter

GIB = 2**30


@pytest.fixture(scope="module")
def laptop() -> Environment:
    return environment.detect().model_copy(update={"gpus": (), "memory_bytes": 16 * GIB})


@pytest.fixture(scope="module")
def server(laptop: Environment) -> Environment:
    return laptop.model_copy(update={"gpus": (GPU(name="NVIDIA L4", memory_bytes=24 * GIB),)})


def written(path: Path, model: str, machine: Environment, **options: int) -> RunConfig:
    starter.write(path, starter.choose(model, machine, **options))
    return load.load(path)


def kinds(config: RunConfig) -> list[str]:
    return [backend.kind for backend in config.backends]


def test_the_demo_model_is_measured_in_full(tmp_path: Path, laptop: Environment) -> None:
    config = written(tmp_path / "x.yaml", "demo", laptop)
    assert kinds(config) == ["fp16", "int4", "nf4", "awq", "gptq"]
    assert config.measure.mmlu is not None
    assert config.measure.perplexity is not None
    assert (config.measure.mmlu.partial, config.measure.perplexity.partial) == (False, False)
    assert config.device == "cpu"


def test_a_shape_is_measured_without_accuracy(tmp_path: Path, laptop: Environment) -> None:
    config = written(tmp_path / "x.yaml", "tinyllama-1.1b", laptop)
    assert config.model.weights == "random"
    assert (config.measure.mmlu, config.measure.perplexity) == (None, None)
    assert config.calibration.samples < 10


def test_backends_and_batches_are_those_that_fit(tmp_path: Path, laptop: Environment, server: Environment) -> None:
    """16 GB of 16-bit weights stand in 24 GiB; loading nf4, awq and gptq on a CPU takes them about twice."""
    model = "meta-llama/Meta-Llama-3-8B-Instruct"
    gpu = written(tmp_path / "gpu.yaml", model, server)
    assert kinds(gpu) == ["fp16", "int4", "nf4", "awq", "gptq"]
    small = written(tmp_path / "small.yaml", model, server, memory_bytes=12 * GIB)
    assert kinds(small) == ["int4", "nf4", "awq", "gptq"]
    assert small.measure.throughput is not None
    assert small.measure.throughput.batch_sizes == (1, 8)
    assert small.measure.perplexity is not None
    assert not small.measure.perplexity.divergence
    assert kinds(written(tmp_path / "cpu.yaml", model, laptop)) == ["int4"]
    assert "left out: fp16, nf4, awq, gptq" in (tmp_path / "cpu.yaml").read_text()


def test_what_fits_nowhere_is_refused_with_what_it_takes(laptop: Environment) -> None:
    with pytest.raises(QbenchError, match=r"no backend fits 2.0 GiB; the smallest takes 5.4 GiB"):
        starter.choose("llama-3-8b", laptop, memory_bytes=2 * GIB)


def test_a_model_of_which_nothing_is_here_gets_all_backends(tmp_path: Path, laptop: Environment) -> None:
    config = written(tmp_path / "x.yaml", "some/model", laptop)
    assert len(config.backends) == 5
    assert config.model.id == "some/model"
    assert "not known before the model's config.json is here" in (tmp_path / "x.yaml").read_text()


def test_a_folder_with_an_odd_name_is_quoted(tmp_path: Path, laptop: Environment) -> None:
    folder = tmp_path / "mein Modell: 'neu' #1"
    folder.mkdir()
    content = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 96, "max_position_embeddings": 128,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content))
    config = written(tmp_path / "x.yaml", str(folder), laptop)
    assert config.model.path == folder
    assert config.measure.throughput is not None
    assert config.measure.throughput.seq_len == 128


@pytest.mark.parametrize(
    ("model", "words"),
    [("llama-3-9b", "did you mean llama-3-8b"), ("a/b/c", "neither demo, nor a folder"), ("", "neither demo")],
)
def test_what_is_no_model_is_refused(laptop: Environment, model: str, words: str) -> None:
    with pytest.raises(QbenchError, match=words):
        starter.choose(model, laptop)


def test_backends_can_be_named(tmp_path: Path, laptop: Environment) -> None:
    choice = starter.choose("demo", laptop).with_backends(["int4"])
    starter.write(tmp_path / "x.yaml", choice)
    config = load.load(tmp_path / "x.yaml")
    assert kinds(config) == ["int4"]
    assert "calibration" not in (tmp_path / "x.yaml").read_text()
    with pytest.raises(QbenchError, match="unknown backend 'imt4'; did you mean int4"):
        choice.with_backends(["imt4"])
    with pytest.raises(QbenchError, match="is listed twice"):
        choice.with_backends(["int4", "int4"])


def test_a_file_is_replaced_only_by_force(tmp_path: Path, laptop: Environment) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("mine")
    choice = starter.choose("demo", laptop)
    with pytest.raises(QbenchError, match=r"is there already; .* --force"):
        starter.write(path, choice)
    assert path.read_text() == "mine"
    starter.write(path, choice, force=True)
    assert load.load(path).name == "qbench-demo"
    with pytest.raises(QbenchError, match="is there already"):
        starter.write(tmp_path, choice, force=True)
    with pytest.raises(QbenchError, match="cannot be written"):
        starter.write(tmp_path / "nowhere" / "x.yaml", choice)
