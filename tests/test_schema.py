import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from qbench.config import MeasureConfig, RunConfig, backend_kinds, schema

jsonschema = pytest.importorskip("jsonschema")

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(schema.build())
    return jsonschema.Draft202012Validator(schema.build())


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert (CONFIGS / "schema.json").read_text(encoding="utf-8") == schema.text(), (
        "make it again: qbench schema --out configs/schema.json"
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_name_the_schema(validator: Any, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    validator.validate(YAML(typ="safe", pure=True).load(text))


@pytest.mark.parametrize(
    "changes",
    [
        {"measure": {"memory": None, "mmlu": True, "perplexity": False, "throughput": None}},
        {"backends": [{"kind": "int4", "group_size": -1, "label": "rows"}, {"kind": "gptq", "desc_act": True}]},
        {"matrix": {"dtype": ["float16", "bfloat16"], "backends.int4.group_size": [32, 64]}},
        {"model": {"path": "/models/x"}, "device": "cuda:1", "threads": None},
    ],
)
def test_what_a_file_may_say_is_valid(validator: Any, changes: dict[str, object]) -> None:
    validator.validate({"name": "r", "model": {"demo": True}, "backends": [{"kind": "fp16"}]} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"modle": {}},
        {"matrix": {"dtype": []}},
        {"matrix": {"dtype": "float16"}},
        {"measure": {"thruput": {}}},
        {"measure": {"mmlu": {"num_fewshot": 6}}},
        {"measure": {"mmlu": "yes"}},
        {"backends": []},
        {"backends": [{"kind": "int5"}]},
        {"backends": [{"group_size": 64}]},
        {"backends": [{"kind": "nf4", "group_size": 64}]},
        {"backends": [{"kind": "int4", "label": ""}]},
        {"name": "../x"},
        {"device": "tpu"},
    ],
)
def test_what_is_wrong_in_itself_is_not(validator: Any, changes: dict[str, object]) -> None:
    wrong = {"name": "r", "model": {"demo": True}, "backends": [{"kind": "fp16"}]} | changes
    assert not validator.is_valid(wrong)


def test_the_model_may_stand_in_the_matrix(validator: Any) -> None:
    without = {"name": "r", "backends": [{"kind": "fp16"}]}
    assert validator.is_valid(without | {"matrix": {"model": [{"demo": True}]}})
    assert not validator.is_valid(without)


def test_every_option_is_in_it() -> None:
    found = json.loads(schema.text())
    assert set(found["properties"]) == {*RunConfig.model_fields, "matrix"}
    assert set(found["$defs"]["MeasureConfig"]["properties"]) == set(MeasureConfig.model_fields)
    for kind, cls in backend_kinds().items():
        assert set(found["$defs"][kind]["properties"]) == set(cls.model_fields)
