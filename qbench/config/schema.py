"""The JSON Schema of a configuration file, as editors take it.

Made of the classes of `qbench.config`; what it cannot say, such as that labels are distinct, `qbench validate` says.
"""

from __future__ import annotations

import json
from typing import Any

from qbench.config import MeasureConfig, RunConfig, backend_kinds
from qbench.config.kinds import plugins

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def build() -> dict[str, Any]:
    """The schema of a YAML file: that of `RunConfig`, and what `qbench.config.load` and `qbench.config.matrix` take
    besides."""
    schema = RunConfig.model_json_schema()
    sections = schema["$defs"]
    for cell in _add_kinds(schema):
        # With a kind, an editor knows which options there are.
        cell["required"] = ["kind", *cell.get("required", ())]
        # Empty means the kind, which is no name by its pattern.
        cell["properties"]["label"].pop("default")
    measures = sections[MeasureConfig.__name__]["properties"]
    for name, field in MeasureConfig.model_fields.items():
        section = next(option for option in measures[name].get("anyOf", [measures[name]]) if "$ref" in option)
        # `mmlu:` and `mmlu: true` mean its defaults, `mmlu: false` none of it.
        measures[name] = {"anyOf": [{"$ref": section["$ref"]}, {"type": "boolean"}, {"type": "null"}]}
        if field.default is not None:
            measures[name]["default"] = True
    schema["properties"]["matrix"] = {
        "description": "dotted paths with lists of values: a run, or below backends.<label> a cell, for each of them",
        "anyOf": [
            {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}, "minProperties": 1},
            {"type": "null"},
        ],
    }
    # A matrix may give the model.
    schema["required"].remove("model")
    schema["anyOf"] = [{"required": ["model"]}, {"required": ["matrix"]}]
    return {"$schema": DRAFT, **schema, "title": "qbench configuration"}


def _add_kinds(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the kinds of backends into the schema; the sections of their options."""
    union: dict[str, Any] = {"discriminator": {"mapping": {}, "propertyName": "kind"}, "oneOf": []}
    schema["properties"]["backends"]["items"] = union
    cells = []
    for kind, cls in (backend_kinds() | {kind: plugin.load_config() for kind, plugin in plugins().items()}).items():
        cell = cls.model_json_schema(ref_template="#/$defs/{model}")
        schema["$defs"] |= {**cell.pop("$defs", {}), kind: cell}
        union["oneOf"].append({"$ref": f"#/$defs/{kind}"})
        union["discriminator"]["mapping"][kind] = f"#/$defs/{kind}"
        cells.append(cell)
    return cells


def text() -> str:
    """The schema as a JSON text."""
    return json.dumps(build(), indent=2, ensure_ascii=False) + "\n"
