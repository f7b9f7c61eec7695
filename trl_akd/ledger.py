"""Files that survive interruption: append-only JSON Lines, and atomic writes; and temporary files."""

import errno
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from filelock import FileLock, Timeout

__all__ = [
    "Ledger",
    "acquire_lock",
    "locate_json_lines",
    "read_json_line",
    "read_json_lines",
    "replace_text",
    "temporary_file",
    "write_json_lines",
]

_BLOCK = 1 << 16  # bytes per read when searching backwards for the last line end
_LINE = 1 << 12  # bytes of the first read of a line; most lines are shorter


class Ledger:
    r"""Append JSON objects to a file, and read the existing ones.

    The settings of all lines are in a separate file, and a ledger with other settings is refused. A lock file
    (`.jsonl.lock`) allows one process at a time. An incomplete last line, from an interruption, is dropped.

    Args:
        path (`Path`):
            File with the suffix `.jsonl`, created with its folder if it does not exist.
        settings (`Mapping`, *optional*):
            JSON values that apply to all lines. Without them, there is no file of settings.
        sidecar (`Path`, *optional*):
            File of the settings, by default with the suffix `.settings.json` in place of `.jsonl`.
        option (`str`, *optional*, defaults to `"output"`):
            Name of the option that selects the file, for error messages.

    Attributes:
        facts (`dict`): Settings and the facts added by `note`.

    Raises:
        ValueError: If the file was written with other settings.
        BlockingIOError: If another process has locked the file.

    Example:

    ```python
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "plans.jsonl"
    ...     with Ledger(path, {"model": "teacher"}) as ledger:
    ...         _ = ledger.append([{"id": "1", "plan": "1. Read n."}])
    ...     _ = path.write_text(path.read_text() + '{"id": "2", "pl')  # an interrupted write
    ...     with Ledger(path, {"model": "teacher"}) as ledger:
    ...         [row["id"] for row, where in ledger.read()]
    ['1']

    ```
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        sidecar: Path | None = None,
        option: str = "output",
    ) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = acquire_lock(path, option)
        self._file = cast(BinaryIO, open(path, "a+b", buffering=0))
        try:
            self._sidecar = sidecar or path.with_suffix(".settings.json")
            self.facts: dict[str, Any] = {}
            if settings is not None:
                if path.stat().st_size == 0:
                    replace_text(self._sidecar, json.dumps(settings, indent=2) + "\n")
                self.facts = _read_json(self._sidecar, path, option)
                _check_settings(path, self.facts, settings, option)
            _drop_torn_line(self._file)
        except BaseException:
            self.close()
            raise

    def read(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the objects in the file, each with the name of its line for error messages."""
        return read_json_lines(self.path)

    def locate(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        """Yield the objects in the file, each with the name and the position of its line."""
        return locate_json_lines(self.path)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Append objects, and return the positions of their lines, for [`read_json_line`], once they are on disk.

        Raises:
            OSError: If the disk is full; complete lines are kept.
        """
        lines = [f"{json.dumps(row)}\n".encode("ascii") for row in rows]
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(b"".join(lines))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            _drop_torn_line(self._file)
            raise OSError(
                error.errno,
                f"{self.path} cannot be extended ({error.strerror}); free some space and run again (lines are kept)",
            ) from error
        return list(accumulate(map(len, lines[:-1]), initial=end)) if lines else []

    def note(self, **facts: Any) -> None:
        """Add facts to the settings; they are not compared with later settings."""
        self.facts.update(facts)
        replace_text(self._sidecar, json.dumps(self.facts, indent=2) + "\n")

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_json_lines(path: Path, *, interrupted: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a JSON Lines file, plain or gzipped, each with the name of its line for error messages.

    Args:
        path (`Path`):
            The file.
        interrupted (`bool`, *optional*, defaults to `False`):
            Whether an incomplete last line, from an interruption, is left out, as [`Ledger`] does.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a line is not a JSON object; the message has its number. Or if a gzipped file is damaged.
    """
    for row, where, _ in locate_json_lines(path, interrupted=interrupted):
        yield row, where


def locate_json_lines(path: Path, *, interrupted: bool = False) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Yield what [`read_json_lines`] yields, each with the position of its line in the uncompressed file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; check the path.")
    end = 0
    for number, line in enumerate(_read_lines(path), start=1):
        position, end = end, end + len(line)
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            if interrupted and not line.endswith(b"\n"):
                return
            raise ValueError(f"{where} is not JSON ({error}); correct or delete the line.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is {line[:40]!r}; give one JSON object per line.")
        yield row, where, position


def read_json_line(file: BinaryIO, position: int) -> dict[str, Any]:
    """Return the object in the line at a position of an uncompressed JSON Lines file.

    The current position of the file, which forked processes share, is neither used nor changed.

    Raises:
        ValueError: If there is no JSON object.
    """
    size = _LINE
    while b"\n" not in (block := os.pread(file.fileno(), size, position)) and len(block) == size:
        size *= 4
    try:
        row: dict[str, Any] = json.loads(block.partition(b"\n")[0])
    except ValueError as error:
        raise ValueError(f"{file.name} has changed while it was in use ({error}); run again.") from error
    return row


def replace_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file, whole or in parts, atomically and with its folder: readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.tmp")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write objects to a JSON Lines file atomically, one after another."""
    replace_text(path, (f"{json.dumps(row)}\n" for row in rows))


@contextmanager
def temporary_file() -> Iterator[BinaryIO]:
    """Yield a new temporary file without a name to write to. It stays open afterwards, and is closed after an error.

    Raises:
        OSError: If the disk is full.
    """
    file = cast(BinaryIO, tempfile.TemporaryFile())
    try:
        yield file
        file.flush()
    except BaseException as error:
        with suppress(OSError):
            file.close()  # writes what is in its buffer
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise OSError(
                error.errno,
                f"a temporary file in {tempfile.gettempdir()} cannot be extended ({error.strerror}); free some space, "
                "or set the environment variable TMPDIR to another folder",
            ) from error
        raise


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def acquire_lock(path: Path, option: str) -> FileLock:
    """Acquire the lock of a file. The operating system releases it when the process ends, for any reason.

    Args:
        path (`Path`):
            The file, beside which the lock is a file of its own, with the suffix `.lock`.
        option (`str`):
            Option that names the file, for the error.

    Raises:
        BlockingIOError: If another process has the lock.
    """
    lock = FileLock(path.with_suffix(path.suffix + ".lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            errno.EAGAIN, f"{path} is being written by another process; wait for it or give another {option}."
        ) from error
    return lock


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            yield from lines
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); copy it again.") from error


def _read_json(sidecar: Path, path: Path, option: str) -> dict[str, Any]:
    if not sidecar.exists():
        raise ValueError(f"{path} has lines, but {sidecar.name} is missing; give another {option}.")
    try:
        return dict(json.loads(sidecar.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{sidecar} is damaged ({error}); give another {option}.") from error


def _check_settings(path: Path, kept: Mapping[str, Any], settings: Mapping[str, Any], option: str) -> None:
    for name, value in json.loads(json.dumps(settings)).items():
        if kept.get(name) != value:
            raise ValueError(
                f"{path} was generated with {name}={kept.get(name)!r}, not {value!r}; give another {option}, or the "
                f"same {name} to continue."
            )


def _drop_torn_line(file: BinaryIO) -> None:
    """Truncate the file after its last line end."""
    end = kept = file.seek(0, os.SEEK_END)
    while kept:
        start = max(0, kept - _BLOCK)
        file.seek(start)
        line_end = file.read(kept - start).rfind(b"\n")
        if line_end >= 0:
            kept = start + line_end + 1
            break
        kept = start
    if kept < end:
        file.truncate(kept)
