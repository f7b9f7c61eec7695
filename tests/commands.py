"""Dataclasses of each command, for tests that parse recipes and flags as the command does."""

from importlib import import_module

ACTIONS = {
    "ranker data": "_data_types",
    "ranker train": "_training_types",
    "ranker rank": "_ranking_types",
    "judge train": "_training_types",
    "bench cycles": "_cycles_types",
    "bench plans": "_plans_types",
    "bench models": "_models_types",
}
METHODS = ("akd", "codeplan", "iterkd")
COMMANDS = (*METHODS, "bench", "doctor", "evaluate", "plans", "push", "templates", *ACTIONS)


def argument_types(command: str) -> tuple[type, ...]:
    """Return the dataclasses whose fields a recipe of `command`, with its action, may set."""
    module = import_module(f"trl_akd.cli.{command.partition(' ')[0]}")
    if command in METHODS:
        return module.METHOD.argument_types()
    return getattr(module, ACTIONS.get(command, "_argument_types"))()
