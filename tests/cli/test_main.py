import errno
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from trl_akd import __version__
from trl_akd.cli import COMMANDS, main
from trl_akd.cli.errors import UserError, run, user_errors
from trl_akd.cli.launching import check_reporting


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    assert main([]) == main(["--help"]) == main(["-h"]) == 0
    out = capsys.readouterr().out
    for name, description in COMMANDS.items():
        assert f"{name} " in out and description in out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trl-akd {__version__}\n"


@pytest.mark.parametrize(
    ("command", "remedy"), [("adk", "did you mean 'akd'?"), ("xyz", f"choose one of {', '.join(COMMANDS)}")]
)
def test_unknown_command(command: str, remedy: str, capsys: pytest.CaptureFixture[str]):
    assert main([command]) == 2
    err = capsys.readouterr().err
    assert repr(command) in err and remedy in err and err.count("\n") == 1


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["adk"], ["akd", "--config", "missing.yaml"]])
def test_torch_is_not_imported_before_it_is_needed(argv: list[str]):
    program = f"import sys, trl_akd.cli as cli; cli.main({argv!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_user_error_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]):
    def command(argv: list[str] | None) -> None:
        with user_errors():
            raise ValueError("`seed` is 'x'; give a number.")

    assert run(command) == 2
    assert capsys.readouterr().err == "trl-akd: `seed` is 'x'; give a number.\n"


def _full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/student/model.safetensors")


def _torn_checkpoint() -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1984 vs 1878")


def _hub_out_of_reach() -> None:
    HfApi(endpoint="http://127.0.0.1:9").create_repo("me/student")


def _hub_refuses() -> None:
    raise LocalTokenNotFoundError("Token is required, but no token found.")


@pytest.mark.parametrize(
    ("fail", "remedy"),
    [
        (_full_disk, "(?s)No space left on device.*free some space or choose another `output_dir`"),
        (_torn_checkpoint, "free some space or choose another `output_dir`"),
        (_hub_out_of_reach, "the Hugging Face Hub cannot be reached.*`push_to_hub: false`"),
        (_hub_refuses, "refused the request.*HF_TOKEN"),
    ],
)
def test_environment_errors_have_one_sentence(
    fail, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """These errors are handled in one place, not in each command."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert run(lambda argv: fail()) == 2
    err = capsys.readouterr().err
    assert re.search(remedy, err) and err.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a fault of the program"):
        run(lambda argv: (_ for _ in ()).throw(RuntimeError("a fault of the program")))


@pytest.mark.parametrize("reporter", ["wandb", "mlflow"])
def test_reporters_must_be_installed(reporter: str):
    check_reporting(SimpleNamespace(report_to=["none"]), SimpleNamespace(), SimpleNamespace(report_to=[]))
    with pytest.raises(ValueError, match=f"`report_to` includes '{reporter}', whose package is not installed"):
        check_reporting(SimpleNamespace(report_to=[reporter]))


def test_errors_of_several_processes_have_the_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    def command(argv: list[str] | None) -> None:
        raise UserError("no.")

    assert run(command) == 2
    assert capsys.readouterr().err == "trl-akd (process 1): no.\n"


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRL_AKD_DEBUG", "1")

    def command(argv: list[str] | None) -> None:
        with user_errors():
            raise FileNotFoundError("no such file")

    with pytest.raises(UserError) as caught:
        run(command)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_internal_errors_keep_their_traceback():
    def command(argv: list[str] | None) -> None:
        with user_errors():
            raise KeyError("a fault")

    with pytest.raises(KeyError):
        run(command)


def test_interrupt_is_status_130():
    def command(argv: list[str] | None) -> None:
        raise KeyboardInterrupt

    assert run(command) == 130


@pytest.mark.parametrize(
    ("argv", "unbuffered"),
    [(["--help"], ""), (["recipes", "list"], ""), (["recipes", "list"], "1"), (["recipes", "--help"], "")],
)
def test_a_command_whose_output_is_no_longer_read_ends_silently(
    argv: list[str], unbuffered: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    code = "import sys; sys.stdin.read(); from trl_akd.cli import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, "-c", code, *argv], stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        process.stdout.close()
        process.stdin.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def test_deepspeed_does_not_tell_every_command_that_there_is_no_accelerator(caplog: pytest.LogCaptureFixture):
    assert main(["--version"]) == 0
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(caplog.handler)
    try:
        logger.warning(
            "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."
        )
        logger.warning("The operator cannot be built")
    finally:
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"The operator cannot be built"}
