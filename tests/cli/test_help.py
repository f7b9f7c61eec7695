"""Help of every command: own fields first, the others on request, examples at the end, no line over 100 columns."""

import re
from dataclasses import fields

import pytest

from tests import commands
from tests.printed import printed_commands
from tests.test_commands import PRINTED
from trl_akd.cli import COMMANDS, main
from trl_akd.cli.help import description, examples

GROUPS = ("ranker", "judge")  # commands that do nothing without an action
WITHOUT_FIELDS = ("quickstart", "recipes", "completion")
FLAG = re.compile(r"^  (?:-\w, )?--(\w+)", re.MULTILINE)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        assert main([*arguments]) == 0
    except SystemExit as end:
        assert end.code in (0, None)
    return capsys.readouterr().out


def test_every_command_is_tested():
    assert {name.partition(" ")[0] for name in (*commands.COMMANDS, *WITHOUT_FIELDS)} == COMMANDS.keys()


@pytest.mark.parametrize("command", ["", *commands.COMMANDS, *GROUPS, *WITHOUT_FIELDS])
@pytest.mark.parametrize("columns", ["60", "300"])
def test_width_and_examples(
    command: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", columns)
    text = shown(capsys, *command.split(), "--help")
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith(f"usage: trl-akd {command}".rstrip())
    _, _, end = text.partition("\nexamples:\n")
    found = [" ".join(words) for words in printed_commands(end)]
    assert found and set(found) <= PRINTED.keys(), "`test_commands.py` parses these examples"
    if command not in ("", *GROUPS):
        assert all(re.match(rf"trl-akd {command}( |$)|accelerate launch ", line) for line in found)


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_own_fields_come_first_and_others_on_request(command: str, capsys: pytest.CaptureFixture[str]):
    short, whole = shown(capsys, *command.split(), "--help"), shown(capsys, *command.split(), "--help", "all")
    kinds = commands.argument_types(command)
    every = {entry.name for kind in kinds for entry in fields(kind) if entry.init}
    ours = [base for kind in kinds for base in kind.__mro__ if base.__module__.startswith("trl_akd")]
    own = {name for base in ours for name in re.findall(r"^ +(\w+) \(`", base.__doc__ or "", re.MULTILINE)} & every
    one_process = command in commands.ACTIONS and commands.ACTIONS[command].one_process
    options = ["config", "help"] if one_process else ["config", "accelerate_config", "help"]
    number = len(options)
    assert FLAG.findall(short)[:number] == FLAG.findall(whole)[:number] == options
    assert set(FLAG.findall(whole)) == every | {*options}
    assert len(FLAG.findall(whole)) == len(every) + number, "each flag has one spelling and one place"
    assert set(FLAG.findall(short)[number : number + len(own)]) == own
    assert ("--accelerate_config" in whole) != one_process
    if every == own:
        assert short == whole and "with `all`" not in whole
    else:
        assert len(short.splitlines()) < len(whole.splitlines()) / 2
        assert f"`trl-akd {command} --help all` also shows the" in short and "--help all`" not in whole


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_defaults_are_shown(command: str, capsys: pytest.CaptureFixture[str]):
    entries = re.split(r"\n(?=  --)", shown(capsys, *command.split(), "--help", "all"))
    texts = {entry.split()[0]: " ".join(entry.split()) for entry in entries}
    for entry in (entry for kind in commands.argument_types(command) for entry in fields(kind)):
        if type(entry.default) in (bool, int, float, str) and entry.default != "" and entry.init:
            assert f"(default: {entry.default})" in texts[f"--{entry.name}"]
    assert not any("(default: None)" in text for text in texts.values())


@pytest.mark.parametrize("group", GROUPS)
def test_groups_list_their_actions(group: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "300")
    text = " ".join(shown(capsys, group, "--help").split())
    actions = {name: action for name, action in commands.ACTIONS.items() if name.startswith(f"{group} ")}
    assert actions
    for name, action in actions.items():
        assert action.summary is not None and f"{name.split()[1]} {action.summary}" in text


def test_help_reads_no_recipe_and_names_its_argument(capsys: pytest.CaptureFixture[str]):
    assert "--benchmark" in shown(capsys, "evaluate", "--config", "missing.yaml", "--help")
    assert main(["evaluate", "--help", "everything"]) == 2
    assert "-h/--help: invalid choice: 'everything' (choose from " in capsys.readouterr().err


DOCSTRING = """`trl-akd tool`: do something.

```bash
trl-akd tool make --size 1 \\
    --seed 2
trl-akd tool run
```

More about it.

```bash
accelerate launch -m trl_akd.cli.tool --seed 3
```
"""


def test_texts_from_a_docstring():
    assert description(DOCSTRING) == "Do something.\n\nMore about it."
    whole = "examples:\n  trl-akd tool make --size 1 \\\n      --seed 2\n  trl-akd tool run\n"
    assert examples(DOCSTRING) == f"{whole}  accelerate launch -m trl_akd.cli.tool --seed 3"
    assert examples(DOCSTRING, "trl-akd tool make") == "examples:\n  trl-akd tool make --size 1 \\\n      --seed 2"
    assert examples("Nothing to show.") == ""
