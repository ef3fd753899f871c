from pathlib import Path

from qbench.run.events import EventLog, EventReader, ProgressEvent, UnitEvent, read_units
from tests.support.rows import throughput


def test_units_and_progress_come_back_in_order_and_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log, reader = EventLog(path), EventReader(path)
    log.unit("throughput/b1/t0", "k", [throughput(trial=0)])
    log.progress("mmlu", 3, 9)
    first = list(reader.new())
    log.unit("throughput/b1/t1", "k", [throughput(trial=1, error="a\nb")])
    second = list(reader.new())
    assert isinstance(first[0], UnitEvent)
    assert first[0].parsed() == [throughput(trial=0)]
    assert first[1] == ProgressEvent(what="mmlu", done=3, total=9)
    assert [event.parsed() for event in second if isinstance(event, UnitEvent)] == [[throughput(trial=1, error="a\nb")]]
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


def test_a_unit_is_kept_whole_or_not_at_all_wherever_its_writer_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).unit("a", "k", [throughput(trial=0), throughput(trial=1)])
    line = path.read_bytes()
    for end in range(len(line) + 1):
        path.write_bytes(line[:end])
        EventLog(path).unit("b", "k", [throughput(trial=2)])
        found = read_units(path)
        assert found["b"].parsed() == [throughput(trial=2)]
        # The newline alone may be missing: the next writer sets it.
        assert ("a" in found) == (end >= len(line) - 1)


def test_the_last_state_of_a_unit_counts(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.unit("a", "k", [throughput(status="oom")])
    log.unit("b", "k", [throughput()], complete=False)
    units = read_units(tmp_path / "events.jsonl")
    assert not units["a"].done
    assert not units["b"].done
    log.unit("a", "k", [throughput(trial=1)])
    log.unit("b", "k", [])
    units = read_units(tmp_path / "events.jsonl")
    assert units["a"].done
    assert units["a"].parsed() == [throughput(trial=1)]
    assert units["b"].done
    assert units["b"].parsed() == []


def test_a_row_of_an_unknown_type_or_of_other_columns_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).unit("a", "k", [throughput()])
    EventLog(path).unit("b", "k", [throughput()])
    first, second = path.read_text().splitlines()
    path.write_text(first.replace("ThroughputRow", "NoSuchRow") + "\n" + second.replace("new_tokens", "renamed") + "\n")
    EventLog(path).unit("c", "k", [throughput(trial=1)])
    assert list(read_units(path)) == ["c"]


def test_no_file_has_no_units(tmp_path: Path) -> None:
    assert read_units(tmp_path / "events.jsonl") == {}
