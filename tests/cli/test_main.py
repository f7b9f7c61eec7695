import subprocess
import sys

import pytest

from trl_akd import __version__
from trl_akd.cli import COMMANDS, main
from trl_akd.cli.errors import UserError, run, user_errors


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


def test_one_of_several_processes_says_which_it_is(
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


def test_faults_of_the_program_are_not_hidden():
    def command(argv: list[str] | None) -> None:
        with user_errors():
            raise KeyError("a fault")

    with pytest.raises(KeyError):
        run(command)


def test_interrupt_is_status_130():
    def command(argv: list[str] | None) -> None:
        raise KeyboardInterrupt

    assert run(command) == 130
