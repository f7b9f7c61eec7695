from pathlib import Path

import pytest

from trl_akd.cli.recipes import RECIPES, find_accelerate_config, find_recipe

NAME = "recipes/starcoder-7b-to-1b/akd/config_full.yaml"


def test_recipe_by_path(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.touch()
    assert find_recipe(str(path)) == path


def test_recipe_of_the_package_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(NAME) == find_recipe(NAME.removeprefix("recipes/")) == RECIPES.parent / NAME


def test_local_file_precedes_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / NAME
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.chdir(tmp_path)
    assert find_recipe(NAME).resolve() == own


@pytest.mark.parametrize("name", [NAME, "recipes/micro/codeplan/plans.yaml"])
def test_missing_recipe_suggests_a_close_one(name: str):
    with pytest.raises(FileNotFoundError, match=f"did you mean '{name}'"):
        find_recipe(name.removesuffix(".yaml"))


def test_missing_recipe_without_a_suggestion():
    with pytest.raises(FileNotFoundError, match=r"'zzz\.yml', but there is no such file; check the path"):
        find_recipe("zzz.yml")


def test_folder_is_not_a_recipe(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="which is a folder; name a YAML file"):
        find_recipe(str(tmp_path))


def test_accelerate_config_by_path_and_name(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.touch()
    assert find_accelerate_config(str(path)) == path
    assert find_accelerate_config("zero3") == RECIPES / "accelerate_configs" / "zero3.yaml"


def test_missing_accelerate_config_lists_the_names():
    with pytest.raises(FileNotFoundError, match=r"neither a file nor one of ddp, .*zero3_cpu; did you mean 'zero3'\?"):
        find_accelerate_config("zeor3")
