import csv
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.records import csvtext
from qbench.records.files import write_atomically
from qbench.records.rows import TABLES, AccuracyRow, CellRow, Row, ThroughputRow
from qbench.records.run import RunRecord, find_runs, read_run, read_table, write_frame, write_table
from tests.support.made_up_run import cell
from tests.support.rows import IDENTITY, throughput


def record() -> RunRecord:
    return RunRecord(
        name="r", model="m", command="qbench run", config={"name": "r"}, model_fingerprint="f",
        environment=environment.detect(), started=datetime.now(UTC),
    )  # fmt: skip


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record().model_dump_json())
    write_table(folder / "throughput.csv", ThroughputRow, [throughput(trial=0), throughput(trial=1)])
    return folder


def test_columns_are_the_fields_of_the_row_and_a_missing_value_is_empty(tmp_path: Path) -> None:
    write_table(tmp_path / "throughput.csv", ThroughputRow, [throughput(status="oom", error='no, "room"\nat all')])
    header, *_ = (tmp_path / "throughput.csv").read_text().splitlines()
    assert header.split(",") == list(ThroughputRow.model_fields)
    (row,), warnings = read_table(tmp_path / "throughput.csv", ThroughputRow)
    assert warnings == []
    assert (row.error, row.decode_tokens_per_s) == ('no, "room"\nat all', None)
    assert ",0.0" not in (tmp_path / "throughput.csv").read_text()


words = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.text("'=+-@\t\r\n\",a1", min_size=1, max_size=6),
)
"""Of any characters, and of those that CSV and spreadsheets take for something else."""


def values(kind: Any) -> st.SearchStrategy[Any]:
    """What a field of a row can hold."""
    if parts := get_args(kind):
        return st.sampled_from(parts) if get_origin(kind) is Literal else st.one_of(*map(values, parts))
    return {
        str: words,
        bool: st.booleans(),
        int: st.integers(-(2**62), 2**62),
        float: st.floats(allow_nan=False, allow_infinity=False),
        NoneType: st.none(),
    }[kind]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(data=st.data())
@pytest.mark.parametrize("row_type", TABLES.values(), ids=TABLES)
def test_what_is_written_is_what_is_read(tmp_path: Path, row_type: type[Row], data: st.DataObject) -> None:
    fields = {name: values(field.annotation) for name, field in row_type.model_fields.items()}
    rows = [row_type.model_validate(row) for row in data.draw(st.lists(st.fixed_dictionaries(fields), max_size=2))]
    write_table(tmp_path / "t.csv", row_type, rows)
    assert read_back(tmp_path / "t.csv", row_type) == [row.model_dump() for row in rows]


def read_back(path: Path, row_type: type[Row]) -> list[dict[str, Any]]:
    """The rows of a table as Python's own values, told without the data frame, in which 2^62 + 1 may be a float."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == list(row_type.model_fields)
    _, warnings = read_table(path, row_type)
    assert warnings == []
    given = ({key: csvtext.unguard(text) for key, text in zip(header, line, strict=True) if text} for line in lines)
    return [row_type.model_validate(row).model_dump() for row in given]


@pytest.mark.parametrize("text", ["=HYPERLINK(A1)", "+1", "-1", "@sum", "\t=1", "\r=1", "'=1"])
def test_no_text_of_a_table_is_a_formula_to_a_spreadsheet(tmp_path: Path, text: str) -> None:
    write_table(tmp_path / "t.csv", ThroughputRow, [throughput(error=text, ttft_s=-0.5)])
    with (tmp_path / "t.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["error"], line["ttft_s"]) == (f"'{text}", "-0.5")
    (row,), _ = read_table(tmp_path / "t.csv", ThroughputRow)
    assert (row.error, row.ttft_s) == (text, -0.5)


def test_a_data_frame_is_written_as_a_table_is(tmp_path: Path) -> None:
    frame = pd.DataFrame({"model": ["=1+1", None], "delta": [-0.5, None], "n": [-3, 4], "mixed": ["-x", -1]})
    write_frame(tmp_path / "t.csv", frame.convert_dtypes())
    assert (tmp_path / "t.csv").read_text() == "model,delta,n,mixed\n'=1+1,-0.5,-3,'-x\n,,4,-1\n"


def test_a_link_in_place_of_a_half_written_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".file.partial").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "file", "new")
    assert ((tmp_path / "file").read_text(), (tmp_path / "mine").read_text()) == ("new", "mine")


def test_a_truncated_last_line_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    path = folder / "throughput.csv"
    path.write_text(path.read_text()[:-9])
    run = read_run(folder)
    assert [row.trial for row in run.throughput] == [0]
    assert len(run.warnings) == 1
    assert "line 3 is damaged or incomplete" in run.warnings[0]


def test_a_table_that_is_older_than_its_last_columns_is_read(tmp_path: Path) -> None:
    header = "run,model,backend,label,task,subject,num_fewshot,n,correct,accuracy,stderr,partial,wall_s"
    (tmp_path / "t.csv").write_text(f"{header}\nr,m,int4,int4,mmlu,anatomy,5,100,21,0.21,0.04,False,643.2\n")
    (row,), warnings = read_table(tmp_path / "t.csv", AccuracyRow)
    assert warnings == []
    assert (row.correct, row.wall_s, row.forward_tokens) == (21, 643.2, None)


@pytest.mark.parametrize("header", ["", "run", "run,model,backend,label,batch_size,prompt_tokens", "run,model,label"])
def test_a_table_without_columns_that_every_row_has_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n")
    with pytest.raises(QbenchError, match="not the columns"):
        read_table(tmp_path / "t.csv", ThroughputRow)


def test_a_task_without_subjects_and_without_whole_answers_survives_the_table(tmp_path: Path) -> None:
    row = AccuracyRow.model_validate(
        IDENTITY | {"task": "truthfulqa_mc2", "num_fewshot": 0, "n": 3, "accuracy": 0.4, "partial": False}
    )
    write_table(tmp_path / "t.csv", AccuracyRow, [row])
    assert read_table(tmp_path / "t.csv", AccuracyRow) == ([row], [])
    assert (row.subject, row.correct) == ("", None)


def test_a_table_of_another_tool_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    (folder / "cells.csv").write_text("a,b\n1,2\n")
    with pytest.raises(QbenchError, match=r"cells\.csv: these are not the columns"):
        read_run(folder)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"name": 5}'])
def test_a_foreign_run_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(QbenchError, match="not written by qbench, or damaged"):
        read_run(tmp_path)


def test_a_table_of_an_older_version_lacks_columns(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("run,model,backend,label,bits,status,device\nr,m,int4,int4,4,ok,cpu\n", encoding="utf-8")
    (row,), warnings = read_table(path, CellRow)
    assert not warnings
    assert (row.device, row.lm_head_bits) == ("cpu", None)
    path.write_text("run,model,backend,label,bits,device\nr,m,int4,int4,4,cpu\n", encoding="utf-8")  # no status
    with pytest.raises(QbenchError, match="not the columns"):
        read_table(path, CellRow)


def test_of_two_rows_of_a_cell_the_last_counts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    cells = [cell("int4", status="crashed"), cell("nf4"), cell("int4", peak_memory_bytes=7)]
    write_table(folder / "cells.csv", CellRow, cells)
    assert {(one.label, one.status, one.peak_memory_bytes) for one in read_run(folder).cells} == {
        ("int4", "ok", 7),
        ("nf4", "ok", None),
    }


def test_a_run_without_some_tables_has_empty_ones(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "r"))
    assert (run.cells, run.accuracy, run.reference) == ((), (), None)
    assert len(run.throughput) == 2


def test_runs_are_found_in_a_folder_and_published_ones_in_theirs(tmp_path: Path) -> None:
    one, two, published = (make_run(tmp_path / name) for name in ("a", "b", "published/c"))
    assert find_runs(tmp_path) == [one, two]
    assert find_runs(one) == [one]
    assert find_runs(tmp_path / "published") == [published]


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="no run here"):
        find_runs(tmp_path)
    with pytest.raises(QbenchError, match="no such folder"):
        find_runs(tmp_path / "nothing")
    with pytest.raises(QbenchError, match="not a run's folder"):
        read_run(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
