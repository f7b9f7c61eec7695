"""Every recipe parses, follows the paper, and trains for two steps with tiny models of its architectures."""

import re
from pathlib import Path

import pytest
import yaml

from tests.commands import argument_types
from trl_akd.bench.plan import plan
from trl_akd.cli import main
from trl_akd.cli.parsing import RecipeParser
from trl_akd.cli.quickstarts import JUDGE_PROMPT_FILE, PROMPTS_FILE
from trl_akd.cli.recipes import RECIPES, find_accelerate_config, read_recipe
from trl_akd.cli.resolving import resolve
from trl_akd.cli.tiny_models import KNOWN_MODELS
from trl_akd.micro.teacher_data import JUDGE_PROMPT, TEACHING_PROMPTS

ROOT = RECIPES.parent
PATHS = sorted(RECIPES.rglob("config*.yaml"))
PAPER = [path for path in PATHS if "micro" not in path.parts]
BENCH = sorted(RECIPES.glob("*/bench/*.yaml"))
MODELS = sorted(RECIPES.glob("paper/*/*.yaml"))  # benchmarks with real models, one per table of the papers
EXPERIMENTS = {"cycles": "bench cycles", "plans": "bench plans"}  # benchmarks of methods
STEPS = sorted(set(RECIPES.glob("*/*/*.yaml")) - {*PATHS, *BENCH, *MODELS})  # what comes before and after the training
AKD, CODEPLAN, ITERKD = (
    [path for path in PAPER if path.parent.name == method] for method in ("akd", "codeplan", "iterkd")
)
SECTIONS = ["# Model", "# Teacher", "# Data", "# Method", "# Trainer", "# Evaluation", "# Hub"]
COMMANDS = re.compile(
    r"(?:trl-akd |-m trl_akd\.cli\.)(\w+(?: train| cycles| plans| models)?) --config (\S+)"
    r"(?:.*--accelerate_config (\S+))?"
)


def name(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def command_of(path: Path) -> str:
    if path in MODELS:
        return "bench models"
    step = EXPERIMENTS.get(path.stem, "bench") if path in BENCH else path.stem.partition("_")[0]
    return {"config": path.parent.name, "ranker": "ranker train"}.get(step, step)


def values_of(path: Path, flags: list[str]):
    """Read the recipe of a step as its command does."""
    parser = RecipeParser(argument_types(command_of(path)), prog="trl-akd")
    return parser.dataclasses(parser.values(read_recipe(str(path)), flags))


def test_there_are_recipes():
    assert (len(AKD), len(CODEPLAN), len(ITERKD), len(STEPS)) == (11, 5, 3, 11)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_parses(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "outputs" / "quickstart-iterkd"  # what the quickstart writes before its recipe is read
    made.mkdir(parents=True)
    (made / PROMPTS_FILE).write_text(yaml.safe_dump(dict(TEACHING_PROMPTS)))
    (made / JUDGE_PROMPT_FILE).write_text(JUDGE_PROMPT)
    method = path.parent.name
    parser = RecipeParser(argument_types(method), prog=f"trl-akd {method}")
    values = parser.values(read_recipe(str(path)), ["--use_cpu", "true", "--output_dir", str(tmp_path)])
    script_args, training_args, model_args, _ = parser.dataclasses(values)
    assert script_args.dataset_name and model_args.model_name_or_path
    assert (training_args.teacher_model_name_or_path is not None) == training_args.uses_teacher
    assert training_args.report_to == [] and not training_args.push_to_hub


@pytest.mark.parametrize("path", [path for path in STEPS if "micro" not in path.parts], ids=name)
def test_steps_of_a_recipe_fit_together(path: Path, tmp_path: Path):
    """It parses, and its input paths are the output paths of the previous step."""
    trainings = [yaml.safe_load(config.read_text()) for config in CODEPLAN]
    beside = [yaml.safe_load(config.read_text()) for config in path.parent.glob("config*.yaml")]
    device = ["--use_cpu", "true"] if command_of(path) == "ranker train" else []
    step, *others = values_of(path, device)
    assert yaml.safe_load(path.read_text())["seed"] == 42
    if command_of(path) == "plans":
        assert f"{step.output_dir}/plans.jsonl" in {training["dataset_name"] for training in trainings}
        assert (step.reasoning, step.temperature) == ("backward", 0.2)
    elif command_of(path) == "evaluate":
        [planning] = others
        assert step.model_name_or_path in {training["output_dir"] for training in beside}
        assert not step.allow_code_execution, "consent is a flag"
        assert (planning.plan_sampling, planning.num_plans, step.num_samples) == (True, 20, 10)
        assert (step.temperature, step.top_p) == (0.6, 0.95)
    else:
        [training] = others
        assert step.train_file in path.read_text().split("# Model")[0]
        assert f"--ranker {training.output_dir}" in path.read_text()
        assert training.report_to == [] and not training.push_to_hub


@pytest.mark.parametrize("path", BENCH, ids=name)
def test_benchmark_parses_and_predicts(path: Path):
    [config] = values_of(path, [])
    if path.stem in EXPERIMENTS:
        assert config.output_dir == f"outputs/bench/{path.stem}"
        assert len(config.predictions) >= 5 and len(config.seeds) >= 5
        return
    assert path.stem in (Path(config.output_dir).name, config.name), "recipes that share a folder have names"
    assert {prediction.world for prediction in config.prediction_settings().values()} <= config.world_settings().keys()
    assert config.control_settings().margin == 0.1


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_tables_of_papers_are_planned(path: Path):
    """Every command that the recipe starts accepts the recipe that it is given."""
    [config] = values_of(path, [])
    assert config.output_dir == f"outputs/bench/{path.parent.name}" and config.name == path.stem
    assert config.method == path.parent.name and len(config.seeds) >= 3
    assert not config.allow_code_execution, "consent is a flag"
    runs = plan(config, resolve)
    rules = {*config.rules, *config.before}
    assert len(runs) == len(config.pairs) * len(rules) * len(config.seeds)
    predicted = {rule for each in config.named_predictions().values() for rule in (each.first, each.second)}
    assert len(config.predictions) >= 2 and predicted <= rules
    assert "# Result:   not yet run" in path.read_text()


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_header_of_a_recipe(path: Path):
    content = yaml.safe_load(path.read_text())
    assert {"seed", "output_dir", "report_to", "push_to_hub"} <= content.keys()
    assert {"akd": "beta_strategy", "codeplan": "plan_weight", "iterkd": "contrastive_loss"}[
        path.parent.name
    ] in content
    headings = [line.partition(":")[0] for line in path.read_text().splitlines()]
    headings = [line for line in headings if line in SECTIONS]
    assert headings == [section for section in SECTIONS if section in headings]
    assert {"# Model", "# Data", "# Method", "# Trainer"} <= set(headings)
    has_teacher = not {"teacher_model_name_or_path", "text_teacher_model_name_or_path"}.isdisjoint(content)
    assert ("# Teacher" in headings) == has_teacher


@pytest.mark.parametrize("path", [*PATHS, *STEPS, *BENCH, *MODELS], ids=name)
def test_commands_of_the_header_exist(path: Path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    commands = COMMANDS.findall(header)
    assert (command_of(path), str(path.relative_to(ROOT))) in {(command, recipe) for command, recipe, _ in commands}
    for command, recipe, config in commands:
        assert (ROOT / recipe).is_file() and command == command_of(ROOT / recipe), recipe
        if config:
            find_accelerate_config(config)


@pytest.mark.parametrize("path", AKD, ids=name)
def test_values_of_the_paper(path: Path):
    recipe = yaml.safe_load(path.read_text())
    assert recipe["learning_rate"] == 1e-5
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] == 8
    assert recipe["max_length"] == 512
    assert (recipe["beta_strategy"], sorted(recipe["beta_initial_values"])) == ("akd", [0.1, 0.6])
    assert (recipe["beta_learning_rate"], recipe["beta_regularization"]) == (0.01, 0.5)
    assert (recipe["dataset_name"], recipe["test_size"]) == ("sahil2801/CodeAlpaca-20k", 1000)
    if path.stem == "config_lora":
        assert recipe["use_peft"]
        assert (recipe["lora_r"], recipe["lora_alpha"], recipe["lora_dropout"]) == (8, 32, 0.1)
    assert {recipe["model_name_or_path"], recipe["teacher_model_name_or_path"]} <= KNOWN_MODELS.keys()
    if "teacher_base_url" in recipe:
        command = f"vllm serve {recipe['teacher_model_name_or_path']} --max-logprobs {recipe['teacher_top_k']}"
        assert command in path.read_text()


@pytest.mark.parametrize("path", CODEPLAN, ids=name)
def test_values_of_the_authors_code(path: Path):
    recipe = yaml.safe_load(path.read_text())
    assert (recipe["plan_weight"], recipe["plan_head"], recipe["plan_objective"]) == (0.5, "separate", "ce")
    assert (recipe["learning_rate"], recipe["weight_decay"]) == (2e-5, 0.05)
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] == 32
    assert recipe["model_name_or_path"] in KNOWN_MODELS
    assert "--accelerate_config zero2" in path.read_text()


@pytest.mark.parametrize("path", ITERKD, ids=name)
def test_cycles_match_the_method_page(path: Path):
    recipe = yaml.safe_load(path.read_text())
    assert (recipe["cycles"], recipe["contrastive_loss"], recipe["contrastive_weight"]) == (3, "dpo_norm", 0.1)
    assert 2 * recipe["new_easy"] == recipe["new_medium"] == recipe["new_hard"]
    assert (recipe["judge"], recipe["eval_benchmark"]) == ("teacher", "humaneval")
    assert "allow_code_execution" not in recipe, "consent is a flag"
    assert recipe["decontaminate"] == ["humaneval", "mbpp"]
    assert (recipe["objective"] == "akd") == ("teacher_model_name_or_path" in recipe)
    assert (recipe["objective"] == "ce") == (recipe.get("backend") == "openai")
    assert recipe["model_name_or_path"] in KNOWN_MODELS
    assert recipe.get("teacher_model_name_or_path", recipe["model_name_or_path"]) in KNOWN_MODELS
    assert "--accelerate_config zero3 --allow_code_execution" in path.read_text()
    if "text_teacher_model_name_or_path" in recipe:
        assert f"vllm serve {recipe['text_teacher_model_name_or_path']}" in path.read_text()


def test_readme_lists_every_recipe_and_config():
    text = (RECIPES / "README.md").read_text()
    for path in [*PAPER, *STEPS, *MODELS]:
        assert f"`recipes/{name(path)}`" in text
    for config in (RECIPES / "accelerate_configs").glob("*.yaml"):
        assert f"`{config.stem}`" in text
    for path in re.findall(r"recipes/[\w./-]+\.yaml", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate_configs").glob("*.yaml")), ids=name)
def test_commands_of_accelerate_configs_exist(path: Path):
    header = path.read_text().split("\ncompute_environment")[0]
    assert f"--accelerate_config {path.stem}" in header
    for config in re.findall(r"--config_file (\S+)", header):
        assert ROOT / config == path


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_dry_run(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    assert main([path.parent.name, "--config", str(path), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "Dry run passed" in out
    recipe = yaml.safe_load(path.read_text())
    assert recipe["model_name_or_path"] in out and recipe.get("teacher_model_name_or_path", "") in out
    assert list(tmp_path.iterdir()) == []
