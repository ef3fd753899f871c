from pathlib import Path

from qbench.events import EventLog, EventReader, ProgressEvent, RowEvent, read_rows
from tests.test_results import throughput


def test_rows_and_progress_come_back_in_order_and_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log, reader = EventLog(path), EventReader(path)
    log.row(throughput(trial=0))
    log.progress("mmlu", 3, 9)
    first = list(reader.new())
    log.row(throughput(trial=1, error="a\nb"))
    second = list(reader.new())
    assert isinstance(first[0], RowEvent)
    assert first[0].parsed() == throughput(trial=0)
    assert first[1] == ProgressEvent(what="mmlu", done=3, total=9)
    assert [event.parsed() for event in second if isinstance(event, RowEvent)] == [throughput(trial=1, error="a\nb")]
    assert list(reader.new()) == []


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).progress("x", 1, 2)
    line = path.read_bytes()
    path.write_bytes(line[:-5])
    reader = EventReader(path)
    assert list(reader.new()) == []
    path.write_bytes(line)
    assert list(reader.new()) == [ProgressEvent(what="x", done=1, total=2)]


def test_a_damaged_line_does_not_hide_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "row", "tab\n')
    EventLog(path).row(throughput())
    assert read_rows(path) == [throughput()]


def test_a_row_of_an_unknown_type_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).row(throughput())
    path.write_text(path.read_text().replace("ThroughputRow", "NoSuchRow"))
    EventLog(path).row(throughput(trial=1))
    assert read_rows(path) == [throughput(trial=1)]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "events.jsonl") == []
