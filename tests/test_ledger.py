"""Append-only files: incomplete lines, locks, full disks and killed processes."""

import errno
import gzip
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from trl_akd import ledger as ledger_module
from trl_akd.ledger import Ledger, read_json_line, read_json_lines, replace_text, temporary_file

SETTINGS = {"model": "teacher", "stop": ("a",)}


def lines(path: Path) -> list[dict]:
    with Ledger(path, SETTINGS) as ledger:
        return [row for row, _ in ledger.read()]


def test_round_trip(tmp_path: Path):
    path = tmp_path / "folder" / "ledger.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.append([{"a": "é\ud800\x00\n"}, {"b": None}])
        ledger.append([])
        ledger.append([{"c": [1.5]}])
        assert [where.split(", ")[1] for _, where in ledger.read()] == ["line 1", "line 2", "line 3"]
    assert lines(path) == [{"a": "é\ud800\x00\n"}, {"b": None}, {"c": [1.5]}]


def test_rows_are_read_at_their_positions(tmp_path: Path):
    path, rows = tmp_path / "ledger.jsonl", [{"a": "é\ud800\n"}, {"b": "x" * 10_000}, {}, {"c": 1.5}]
    with Ledger(path, SETTINGS) as ledger, open(path, "rb") as file:
        written = [*ledger.append(rows[:3]), *ledger.append([]), *ledger.append(rows[3:])]
        assert [read_json_line(file, position) for position in reversed(written)] == rows[::-1]
        assert [(row, position) for row, _, position in ledger.locate()] == list(zip(rows, written, strict=True))
    path.write_bytes(path.read_bytes() + b"\n{}")  # a blank line, and a line without its end
    with Ledger(path, SETTINGS) as ledger, open(path, "rb") as file:
        [last] = ledger.append([{"d": 2}])
        assert read_json_line(file, last) == {"d": 2}
        assert [position for *_, position in ledger.locate()] == [*written, last]


@pytest.mark.parametrize("size", [1 << 12, 1 << 14])  # of the first two reads of a line
def test_lines_of_any_length_are_read(tmp_path: Path, size: int):
    rows = [{"a": "x" * (length - len('{"a": ""}\n'))} for length in (size - 1, size, size + 1, 5 * size, 10)]
    with Ledger(tmp_path / "ledger.jsonl", SETTINGS) as ledger, open(ledger.path, "rb") as file:
        positions = ledger.append(rows)
        assert [read_json_line(file, position) for position in positions] == rows
        os.truncate(ledger.path, ledger.path.stat().st_size - 1)
        assert read_json_line(file, positions[-1]) == rows[-1], "the last line may lack its end"


def test_forked_processes_read_the_same_file(tmp_path: Path):
    """They share its current position, and the second row begins in the buffer of the first one."""
    rows = [{"a": "x"}, {"b": "y" * 10_000}, {"c": "z" * 10_000}]
    with Ledger(tmp_path / "ledger.jsonl", SETTINGS) as ledger, open(ledger.path, "rb") as file:
        positions = ledger.append(rows)
        assert read_json_line(file, positions[0]) == rows[0]
        process = multiprocessing.get_context("fork").Process(target=read_json_line, args=(file, positions[2]))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert read_json_line(file, positions[1]) == rows[1]


def test_error_of_a_file_that_has_changed(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, SETTINGS) as ledger, open(path, "rb") as file:
        _, position = ledger.append([{"a": 1}, {"b": 2}])
        for text in ('{"a": "changed"}\n', ""):
            path.write_text(text)
            with pytest.raises(ValueError, match=r"ledger\.jsonl has changed while it was in use"):
                read_json_line(file, position)


@pytest.mark.parametrize("whole", [0, 1, 3])
@pytest.mark.parametrize("length", [1, 100, 200_000])
def test_only_an_incomplete_last_line_is_dropped(tmp_path: Path, whole: int, length: int):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.append([{"text": "x" * length} for _ in range(whole)])
    with path.open("ab") as file:
        file.write(b"{" * length)
    assert lines(path) == [{"text": "x" * length}] * whole
    with Ledger(path, SETTINGS) as ledger:
        ledger.append([{"next": 1}])
    assert lines(path)[whole:] == [{"next": 1}]


def test_other_settings_are_refused_once_there_are_lines(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, {**SETTINGS, "model": "other"}).close()
    with Ledger(path, SETTINGS) as ledger:
        ledger.append([{}])
    with pytest.raises(ValueError, match=r"generated with model='teacher', not 'other'; give another folder, or"):
        Ledger(path, {**SETTINGS, "model": "other"}, option="folder")
    Ledger(path, SETTINGS).close()


def test_lines_without_settings_are_refused(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"has lines, but ledger\.settings\.json is missing"):
        Ledger(path, SETTINGS)


def test_error_names_damaged_settings(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.append([{}])
    (tmp_path / "ledger.settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"ledger\.settings\.json is damaged"):
        Ledger(path, SETTINGS)


def test_facts_are_stored_and_not_compared(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.append([{}])
        ledger.note(revision="abc")
    with Ledger(path, SETTINGS) as ledger:
        assert ledger.facts == {"model": "teacher", "stop": ["a"], "revision": "abc"}


def test_second_process_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, SETTINGS), pytest.raises(BlockingIOError, match="is being written by another process"):
        Ledger(path, SETTINGS)
    Ledger(path, SETTINGS).close()


def _fill(path: Path, reports) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Ledger(path, SETTINGS) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            ledger.append([{"number": number, "text": "x" * 15} for number in range(5)])
        except OSError as error:
            reports.put(str(error))
        ledger.append([{"n": 5}])  # a short line still fits, and must not follow a torn one


def test_full_disk_keeps_complete_lines(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    reports = context.SimpleQueue()
    process = context.Process(target=_fill, args=(path, reports))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert "ledger.jsonl cannot be extended" in reports.get()
    assert lines(path) == [{"number": 0, "text": "x" * 15}, {"number": 1, "text": "x" * 15}, {"n": 5}]


def test_full_disk_without_a_complete_line(tmp_path: Path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, SETTINGS) as ledger:
        ledger.append([{"n": 1}])
    ledger = Ledger(path, SETTINGS)
    ledger._file.close()
    ledger._file = open("/dev/full", "r+b", buffering=0)
    with pytest.raises(OSError, match="No space left"):
        ledger.append([{"n": 2}])
    ledger.close()
    assert lines(path) == [{"n": 1}]


def test_a_failed_replacement_keeps_the_old_text(tmp_path: Path):
    def parts():
        yield "new"
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "folder" / "results.json"
    replace_text(path, "old")
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, parts())
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["when it is flushed", "when it is written"])
def test_full_disk_of_temporary_files(monkeypatch: pytest.MonkeyPatch, size: int):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(ledger_module.tempfile, "TemporaryFile", lambda: open("/dev/full", "w+b"))
    message = r"a temporary file in .* cannot be extended .*set the environment variable TMPDIR"
    with pytest.raises(OSError, match=message), temporary_file() as file:
        file.write(b"x" * size)
    assert file.closed


def test_temporary_files_stay_open_unless_there_is_an_error():
    with temporary_file() as file:
        file.write(b"{}")
    assert read_json_line(file, 0) == {}
    file.close()
    with pytest.raises(KeyError), temporary_file() as file:
        raise KeyError
    assert file.closed


def _append_until_killed(path: Path) -> None:
    with Ledger(path, SETTINGS) as ledger:
        for number in range(10):
            ledger.append([{"n": number}])
            if number == 6:
                os.kill(os.getpid(), signal.SIGKILL)


def test_appended_lines_survive_kill_9(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    process = multiprocessing.get_context("fork").Process(target=_append_until_killed, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert lines(path) == [{"n": number} for number in range(7)]


@pytest.mark.parametrize(("line", "message"), [("{", "line 2 is not JSON"), ("[1]", "line 2 is b'.1..n'; give one")])
def test_errors_name_malformed_lines(tmp_path: Path, line: str, message: str):
    path = tmp_path / "ledger.jsonl"
    path.write_text(f"{json.dumps({})}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        list(read_json_lines(path))


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"x" + data, lambda data: data[:20] * 9])
def test_error_of_a_damaged_gzip_file(tmp_path: Path, damage):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damage(gzip.compress("".join(f'{{"n": {number**5}}}\n' for number in range(1000)).encode())))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz is damaged or truncated"):
        list(read_json_lines(path))


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        list(read_json_lines(tmp_path / "none.jsonl"))
