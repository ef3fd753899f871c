import json
from pathlib import Path

import pytest

from qbench.config import ModelConfig
from qbench.errors import QbenchError
from qbench.model.architecture import of_model, parse

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
}


@pytest.mark.parametrize(
    "model",
    [
        {"demo": True},
        {"shape": "llama-3-8b", "weights": "random"},
        {"id": "meta-llama/Meta-Llama-3-8B-Instruct"},
        {"id": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "weights": "random"},
    ],
    ids=str,
)
def test_a_model_is_known_without_network_and_weights(model: dict[str, object]) -> None:
    layers = {"demo": 4, "shape": 32, "id": 32 if "Meta" in str(model) else 22}[next(iter(model))]
    assert of_model(ModelConfig.model_validate(model)).num_hidden_layers == layers


def test_a_folder_needs_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_key_value_heads": 1, "head_dim": 32}))
    found = of_model(ModelConfig(path=tmp_path))
    assert (found.query_size, found.key_value_size) == (128, 32)


def test_what_the_hubs_client_has_kept_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert of_model(ModelConfig(id="some/model")).hidden_size == 64
    with pytest.raises(QbenchError, match=r"known neither from a .* `hf download some/other config.json`"):
        of_model(ModelConfig(id="some/other"))
    with pytest.raises(QbenchError, match="no name of a repository"):
        of_model(ModelConfig(id="a/b/c"))


def test_heads_default_to_attention_without_groups() -> None:
    found = parse(LLAMA, "x")
    assert (found.num_key_value_heads, found.head_dim, found.tied) == (4, 16, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mixtral"}, "x: memory and speed of model_type mixtral cannot be predicted .known: llama, "),
        ({"vocab_size": None}, "config.json has no usable vocab_size .None."),
        ({"hidden_size": "64"}, "no usable hidden_size .'64'."),
        ({"num_hidden_layers": 0}, "no usable num_hidden_layers .0."),
    ],
)
def test_what_cannot_be_predicted_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(QbenchError, match=words):
        parse(LLAMA | changes, "x")
