"""YAML files."""

from pathlib import Path

import pytest

from trl_akd.yaml_files import read_yaml


def read(tmp_path: Path, content: bytes):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    return read_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: 2\na: 3", "line 3 sets `a` again, after line 1; keep one of them"),
        (b"a: 1\n'a': 3", "line 2 sets `a` again"),
        (b"rules:\n  kd: {x: 1}\n  kd: {x: 2}", "line 3 sets `kd` again, after line 2"),
        (b"- {1: a, 1: b}", "line 1 sets `1` again"),
        (b"a: [1\nb: 2", "is not valid YAML: .* line 2"),
        (b"a: !!python/object:os.system 1", "is not valid YAML: could not determine a constructor"),
        (b"a: \xe9", "is not a text in UTF-8 .*; save it in that encoding"),
        (b"a: 2026-02-30", "file.yaml: day "),
    ],
)
def test_errors_name_the_file(content: bytes, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"file\.yaml.*{message.removeprefix('file.yaml')}"):
        read(tmp_path, content)


def test_merged_mappings_may_be_overridden(tmp_path: Path):
    content = b"base: &base {a: 1, b: 2}\nother: &other\n  <<: *base\n  a: 3\nlast:\n  <<: [*other, *base]\n  b: 4"
    assert read(tmp_path, content)["last"] == {"a": 3, "b": 4}


def test_equal_keys_of_different_mappings(tmp_path: Path):
    assert read(tmp_path, b"- {a: 1}\n- {a: 2, b: {a: 3}}") == [{"a": 1}, {"a": 2, "b": {"a": 3}}]
