"""User errors, shown as one sentence without a traceback, and exit statuses."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["CLOSED_OUTPUT", "STOPPED", "StoppedEarly", "UserError", "run", "user_errors"]

# During setup, these types mean a wrong value, a missing file or a missing package. During training, they may also
# mean a bug, whose traceback is needed.
SETUP_ERRORS = (ValueError, OSError, ImportError)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
# torch and safetensors report a failed write without an errno.
_FAILED_WRITE = re.compile(
    r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed|unexpected pos \d+"
)
_REMOTE_CODE = re.compile(r"The repository (\S+) (?:contains|references) custom code")
_HUB_CLIENTS = {"huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}

STOPPED = 3
"""Exit status of a run that a budget ended."""


CLOSED_OUTPUT = 141
"""Exit status of a command whose output is no longer read: that of a process ended by SIGPIPE."""


class StoppedEarly(Exception):
    """A budget ended a run, which continues when it is started again."""


class UserError(Exception):
    """An error whose message tells the user what to change."""


@contextmanager
def user_errors(kinds: tuple[type[Exception], ...] = SETUP_ERRORS) -> Iterator[None]:
    """Turn errors of these kinds into `UserError`, and during setup also that of an unknown name in `*_kwargs`."""
    try:
        yield
    except kinds as error:
        raise UserError(_remote_code_message(error) or _text(error)) from error
    except TypeError as error:
        if ValueError not in kinds or "got an unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"{error}; check the names in the fields `*_kwargs` and `*_config`.") from error


def run(command: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 0 for success, 2 for a user error, 3 if a budget ended the run, 130 after an interrupt, and 141 if
    the program that reads the output has ended, as `head` does. User errors are `UserError`, a full disk, a
    wrong configuration of a model and an unreachable Hub. `TRL_AKD_DEBUG=1` in the environment shows their traceback.
    """
    _hide_bars_in_logs()
    _hide_fallback_to_cpu()
    try:
        try:
            command(argv)
        except SystemExit:  # of argparse, after the help
            _flush_output()
            raise
        _flush_output()
    except KeyboardInterrupt:
        return 130
    except StoppedEarly:
        return STOPPED
    except Exception as error:
        if _is_closed_output(error):
            return CLOSED_OUTPUT
        message = str(error) if isinstance(error, UserError) else _environment_message(error)
        if message is None or os.environ.get("TRL_AKD_DEBUG") == "1":
            raise
        print(f"trl-akd{_rank()}: {message}", file=sys.stderr)
        return 2
    return 0


def _flush_output() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _is_closed_output(error: Exception) -> bool:
    """Return whether an error means that standard output is closed, and silence the flush at exit if so."""
    if not (isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError)):
        return False
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _hide_bars_in_logs() -> None:
    """Turn off the bars of all libraries, here and in processes that are started, unless stderr is a terminal.

    A file would get every update of a bar. tqdm reads the variable when it is imported, which commands do later.
    """
    if sys.stderr is not None and not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def _hide_fallback_to_cpu() -> None:
    """Hide DeepSpeed's warning that it found no accelerator, which it prints wherever it is installed and imported.

    A run with DeepSpeed on a machine without an accelerator needs `use_cpu` in any case, see `check_processes`.
    """
    logging.getLogger("DeepSpeed").addFilter(_is_not_fallback_to_cpu)


def _is_not_fallback_to_cpu(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Setting accelerator to CPU")


def _text(error: Exception) -> str:
    """Return the message of an error, without the number of a system error whose message is a sentence."""
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror
    return str(error)


def _remote_code_message(error: BaseException) -> str | None:
    """Return a message about a model that needs code of its own, or `None` for another error."""
    found = _REMOTE_CODE.search(str(error))
    return found and (
        f"{found[1]} contains code of its own, which is not run; read that code and set `trust_remote_code: true` to "
        "run it, where the command has this field, or choose a model of an architecture in transformers."
    )


def _environment_message(error: BaseException) -> str | None:
    """Return a message about a full disk, a configuration or an unreachable Hub, or `None` for another error."""
    text = next(iter(str(error).splitlines()), "")
    if (isinstance(error, OSError) and error.errno in _NO_ROOM) or _FAILED_WRITE.search(str(error)):
        return (
            f"a file cannot be written ({text}); free some space or choose another `output_dir`, and run the command "
            "again. Files saved before are kept: training continues from its last checkpoint with "
            "`--resume_from_checkpoint true`."
        )
    if any(kind.__name__ == "StrictDataclassError" for kind in type(error).__mro__):
        return (
            f"the configuration of a model is wrong ({' '.join(str(error).split())}); correct its config.json, or the "
            "fields `*_init_kwargs`, whose values take precedence."
        )
    if any(kind.__module__.partition(".")[0] in _HUB_CLIENTS for kind in type(error).__mro__):
        return (
            f"the Hugging Face Hub cannot be reached, or refused the request ({text or type(error).__name__}); check "
            "the connection, the name and HF_TOKEN, or work offline (`push_to_hub: false`, local paths). "
            "Everything that was trained and saved is in `output_dir`."
        )
    return None


def _rank() -> str:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f" (process {os.environ['RANK']})" if several else ""
