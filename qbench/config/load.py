"""From a YAML file and `--set KEY=VALUE` to a checked `RunConfig`, with errors that name the key and the remedy."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qbench.config import RunConfig, backend_class, kind_names
from qbench.errors import QbenchError
from qbench.text import one_line, suggestion

MOST_BYTES = 256 << 10
"""Of a file: YAML is read at some 100 kB a second, and configurations are a hundredth of this."""

MOST_VALUES = 100_000
"""In a file, those that an alias repeats counted each time."""


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a configuration of one run.

    Args:
        path: the YAML file.
        overrides: `KEY=VALUE` each, a dotted path into the YAML and a YAML value; an element of `backends` is named by
            its label, its kind or its index, e.g. `backends.int4.group_size=64`.

    Raises:
        QbenchError: one line for each thing that is wrong, or a `matrix:`, which makes several runs.
    """
    data = read(path, overrides)
    if "matrix" in data:
        raise QbenchError(f"{path}: its `matrix:` makes several runs, and this takes one; add --set matrix=null")
    return check(data, str(path))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a configuration with `overrides` in their places, not yet checked.

    Raises:
        QbenchError: no YAML, or an override that has no place in it.
    """
    data = _read(path)
    for override in overrides:
        _apply(data, override)
    if data.get("matrix") is None:
        data.pop("matrix", None)
    return data


def check(data: dict[str, Any], where: str) -> RunConfig:
    """The run that values describe; `where` is what errors call them.

    Raises:
        QbenchError: one line for each thing that is wrong.
    """
    _spell_out_measures(data)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _wrong(error))
        raise QbenchError(f"{where} is not a valid configuration:\n{lines}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise QbenchError(f"{path}: is larger than {MOST_BYTES >> 10} KiB, so it is no configuration")
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise QbenchError(f"{path}: no such file; the shipped configurations are in configs/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise QbenchError(f"{path}: cannot be read as text ({error})") from error
    data = _parse(text, str(path))
    if not isinstance(data, dict):
        raise QbenchError(f"{path}: expected keys such as `name:` and `model:` at the top level, found {_kind(data)}")
    return data


def _parse(text: str, where: str) -> Any:
    """The plain values of a YAML text; a repeated key is an error, and nothing in it can run code."""
    try:
        data = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise QbenchError(f"{where}{line}: not valid YAML: {one_line(problem)}") from error
    except RecursionError as error:
        raise QbenchError(f"{where}: values are nested too deeply") from error
    except Exception as error:  # whatever Python raises for a date, number or key that is none
        reason = one_line(str(error))
        raise QbenchError(f"{where}: not valid YAML: {type(error).__name__}: {reason}; quote what is a text") from error
    _check_values(data, where)
    return data


def _check_values(data: Any, where: str) -> None:
    """Refuse what a few aliases blow up to more than memory holds, and what nothing can be named or counted by."""
    values = 0
    rest = [data]
    while rest:
        value = rest.pop()
        values += 1
        if values > MOST_VALUES:
            raise QbenchError(f"{where}: holds more than {MOST_VALUES:,} values, aliases counted each time")
        if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise QbenchError(f"{where}: {_shown(value)} holds a character that no file can; remove it")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise QbenchError(f"{where}: {_shown(value)} does not fit into 64 bits")
        if isinstance(value, dict):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            rest += value


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise QbenchError(f"--set {override}: expected KEY=VALUE, e.g. --set measure.mmlu.limit=10")
    option = f"--set {key}"
    if key.startswith("matrix."):  # The keys of a matrix are dotted paths themselves.
        axes = _child(data, "matrix", option)
        if not isinstance(axes, dict):
            raise QbenchError(f"{option}: matrix is a single value and has no keys")
        axes[key.removeprefix("matrix.")] = _parse(text, option)
    else:
        assign(data, key, _parse(text, option), option)


def assign(data: dict[str, Any], path: str, value: Any, origin: str) -> None:
    """Put `value` at a dotted path, making the sections that lead there; `origin` is what errors call the wish.

    Raises:
        QbenchError: the path leads through a single value, or to a cell that is not there.
    """
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        node = _child(node, part, origin)
    if isinstance(node, list):
        node[index(node, last, origin)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise QbenchError(f"{origin}: {'.'.join(parents)} is a single value and has no key {last}")


def _spell_out_measures(data: dict[str, Any]) -> None:
    """In a file, `mmlu:` without a value or `mmlu: true` asks for its defaults, and `mmlu: false` for none of it."""
    measures = data.get("measure")
    if isinstance(measures, dict):
        chosen = {key: {} if value is None or value is True else value for key, value in measures.items()}
        data["measure"] = {key: value for key, value in chosen.items() if value is not False}


def _child(node: Any, part: str, origin: str) -> Any:
    if isinstance(node, list):
        return node[index(node, part, origin)]
    if not isinstance(node, dict):
        raise QbenchError(f"{origin}: {part} is not a section")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def index(items: list[Any], part: str, origin: str) -> int:
    """The position of a cell that is named by its label, its kind or its index.

    Raises:
        QbenchError: there is no such cell.
    """
    names = [str(item.get("label") or item.get("kind")) if isinstance(item, dict) else "" for item in items]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    raise QbenchError(f"{origin}: no element {part}{suggestion(part, names)} (there are: {', '.join(names)})")


def _wrong(error: ValidationError) -> list[str]:
    """One line for each thing that is wrong: its path, what is wrong, what would be right."""
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        # Elements that are wrong themselves are not counted by pydantic, which then calls their list too short.
        if detail["type"] != "too_short" or not detail["input"]:
            found.setdefault(_locate(detail["loc"])[0], []).append(detail)
    return [one_line(_described(details)) for details in found.values()]


def _shown(value: Any) -> str:
    """What somebody has written, in short."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of more than 4,300 digits
        return "a number of very many digits"


def _described(details: list[ErrorDetails]) -> str:
    """What is wrong in one place: several errors where it takes one of several kinds of values."""
    detail = details[0]
    where, section = _locate(detail["loc"])
    given = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            valid = [*section.model_fields, *(["matrix"] if section is RunConfig else [])]
            unknown = str(detail["loc"][-1])
            return f"{where}: unknown key{suggestion(unknown, valid)} (valid: {', '.join(valid)})"
        case "missing":
            return f"{where}: is missing"
        case "union_tag_invalid":
            kind = str(detail["ctx"]["tag"])
            kinds = kind_names()
            return f"{where}.kind: unknown backend {_shown(kind)}{suggestion(kind, kinds)} (valid: {', '.join(kinds)})"
        case "union_tag_not_found":
            return f"{where}.kind: is missing (one of {', '.join(kind_names())})"
        case "tuple_type":
            example = ", e.g. [{kind: fp16}]" if where == "backends" else ""
            return f"{where}: expected a list{example}, not {_shown(given)}"
        case "model_type" | "model_attributes_type" if section is RunConfig:
            return f"{where}: expected a kind with its keys, e.g. {{kind: fp16}}, not {_shown(given)}"
        case "dict_type":
            return f"{where}: expected keys with values, not {_shown(given)}"
        case "model_type":
            return f"{where}: expected keys with values (valid: {', '.join(section.model_fields)}), not {_shown(given)}"
        case "string_pattern_mismatch" if wanted := _description(section, str(detail["loc"][-1])):
            return f"{where}: expected {wanted}, not {_shown(given)}"
        case "path_type":
            return f"{where}: expected a path, not {_shown(given)}"
        case "value_error":
            return f"{where}: {detail['ctx']['error']}" if where else str(detail["ctx"]["error"])
        case _:
            # The valid names stand in a message as they are written. What pydantic has tried with a value is left out.
            first, *others = [detail["msg"].partition(", unable to")[0] for detail in details]
            wanted = ", or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
            return f"{where}: {wanted[:1].lower()}{wanted[1:]}, not {_shown(given)}"


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """The dotted path of an error, and the section of the schema in which it stands.

    pydantic puts the kind of a backend and the branches of a union into the path; people have not written those.
    """
    section: type[BaseModel] = RunConfig
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif section is RunConfig and path.startswith("backends") and (kind := backend_class(part)):
            section = kind
        elif part in section.model_fields or part == loc[-1]:
            path += f".{part}" if path else part
            if _is_choice(section, part):
                break
            section = _section_of(section, part) or section
    return path, section


def _description(section: type[BaseModel], key: str) -> str | None:
    field = section.model_fields.get(key)
    return None if field is None else field.description


def _is_choice(section: type[BaseModel], key: str) -> bool:
    """Whether a value may be of several kinds, e.g. a number of weights or -1."""
    field = section.model_fields.get(key)
    if field is None or get_origin(field.annotation) not in (Union, UnionType):
        return False
    return len({*get_args(field.annotation)} - {type(None)}) > 1


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = section.model_fields.get(key)
    if field is None:
        return None
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _kind(data: Any) -> str:
    return "nothing" if data is None else f"a {type(data).__name__}"
