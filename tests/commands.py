"""Dataclasses of each command, for tests that parse recipes and flags as the command does."""

from importlib import import_module

from trl_akd.cli.command import Action

METHODS = ("akd", "codeplan", "iterkd")
ACTIONS: dict[str, Action] = {
    f"{command} {name}".rstrip(): action
    for command in ("bench", "cache", "doctor", "evaluate", "judge", "plans", "push", "ranker", "report", "templates")
    for name, action in import_module(f"trl_akd.cli.{command}").ACTIONS.items()
}
COMMANDS = (*METHODS, *ACTIONS)


def argument_types(command: str) -> tuple[type, ...]:
    """Return the dataclasses whose fields a recipe of `command`, with its action, may set."""
    if command in METHODS:
        return import_module(f"trl_akd.cli.{command}").METHOD.argument_types()
    return ACTIONS[command].argument_types()
