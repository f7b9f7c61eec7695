"""The list of mutants matches the code; `make mutants` runs them."""

from pathlib import Path

import pytest

from .mutants import ROOT, Mutant, read_mutants

MUTANTS = read_mutants()


def test_number_of_mutants():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies(mutant: Mutant, tmp_path: Path):
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutant.file).read_text())
    mutant.apply(tmp_path)
    compile(copy.read_text(), mutant.file, "exec")
    assert all((ROOT / test.split("::")[0]).exists() for test in mutant.tests)
