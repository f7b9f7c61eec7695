import subprocess
import sys

import pytest

import trl_akd


def test_all_is_sorted_and_importable():
    assert trl_akd.__all__ == sorted(trl_akd.__all__)
    for name in trl_akd.__all__:
        assert getattr(trl_akd, name).__name__ == name
    assert set(trl_akd.__all__) <= set(dir(trl_akd))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="Nothing"):
        getattr(trl_akd, "Nothing")  # noqa: B009


def test_import_is_light():
    heavy = ("torch", "transformers", "trl", "datasets")
    code = f"import sys, trl_akd, trl_akd.cli; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
