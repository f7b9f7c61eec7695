"""Read YAML files, without the keys that YAML would drop."""

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["read_yaml"]


_ODD_NUMBER = re.compile(r"[-+]?(?:0[0-7_]+|[0-9_]+(?::[0-9]+)+)")
"""Integers of YAML 1.1 to the base 8 or 60, such as the beginning of a commit, or a time."""


class _Loader(yaml.SafeLoader):
    """Loader that refuses a repeated key, of which YAML keeps the last value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, Any], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines and isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                raise ValueError(f"line {line} sets `{key.value}` again, after line {lines[name]}; keep one of them.")
            lines[name] = line
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(node))
        if _ODD_NUMBER.fullmatch(node.value):
            line = node.start_mark.line + 1
            raise ValueError(f"line {line} has {node.value}, which YAML reads as {value}; write that, or use quotes.")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        ValueError: If it is not YAML in UTF-8, or repeats a key; the message names the file.
    """
    try:
        return _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 ({error}); save it in that encoding.") from error
    except ValueError as error:  # a repeated key, or a date such as 2026-02-30
        raise ValueError(f"{path}: {error}") from error
