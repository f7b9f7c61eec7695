"""Model cards: metadata for the Hub, and measured scores."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from trl_akd.hub.model_card import ModelCardContent, Provenance, git_commit, model_card, read_base_model
from trl_akd.hub.scores import FewerProblemsError, add_scores_to_file, score_results

METRICS = {"pass@1": 0.25, "pass@1_low": 0.2, "pass@1_high": 0.3, "pass@1_tasks": 164, "confidence": 0.95}


def made(provenance: Provenance = Provenance(), **settings) -> ModelCard:  # noqa: B008
    common = {"method": "AKD", "objective": {}, "model_name": "student", "repository": "me/student", "tags": ["akd"]}
    return model_card(provenance, ModelCardContent(**common, **settings))


def add_scores(file: Path, results: list[EvalResult]) -> None:
    add_scores_to_file(file, results, {})


@pytest.mark.parametrize(
    ("settings", "metadata", "loader"),
    [
        ({}, {"library_name": "transformers", "pipeline_tag": "text-generation"}, "AutoModelForCausalLM"),
        (
            {"encoder_decoder": True},
            {"library_name": "transformers", "pipeline_tag": "text2text-generation"},
            "AutoModelForSeq2SeqLM",
        ),
        (
            {"adapter": True},
            {"library_name": "peft", "base_model_relation": "adapter"},
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer",
        ),
        ({"adapter": True, "encoder_decoder": True}, {"library_name": "peft"}, "AutoPeftModelForSeq2SeqLM"),
    ],
)
def test_hub_metadata(settings: dict, metadata: dict, loader: str):
    provenance = Provenance(student="org/base", dataset="org/data", license="mit")
    card = made(provenance, **settings)
    read = ModelCard(str(card)).data.to_dict()
    expected = {"base_model": "org/base", "datasets": ["org/data"], "license": "mit", **metadata}
    assert expected.items() <= read.items()
    assert f"{loader}" in card.text and f"{loader.split()[-1].split('.')[0]}" in card.text


@pytest.mark.parametrize("name", ["/data/models/student", "a/b/c", "data.jsonl", "HERE", None, "../x", "with space"])
def test_local_paths_are_not_in_the_metadata(name: str | None, tmp_path: Path, monkeypatch):
    (tmp_path / "HERE").mkdir()
    monkeypatch.chdir(tmp_path)
    data = made(Provenance(student=name, dataset=name)).data
    assert data.base_model is None and data.datasets is None


@pytest.mark.parametrize(
    ("name", "row"),
    [("org/teacher", "| Teacher | `org/teacher` at revision `main` |"), ("", "| Teacher | `{folder}` |")],
)
def test_folders_have_no_revision(name: str, row: str, tmp_path: Path):
    card = made(Provenance(teacher=name or str(tmp_path), teacher_revision="main"))
    assert row.format(folder=tmp_path.name) in card.text


def test_installation_is_from_the_repository_of_the_project():
    urls = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["urls"]
    text = made(Provenance(command="trl-akd akd --config recipe.yaml")).text
    assert f'pip install "git+{urls["Repository"]}"\n' in text and f"[trl_akd]({urls['Repository']})" in text
    assert "pypi.org" not in text


def test_scores_reach_metadata_and_text():
    results = score_results(
        "humaneval", "openai/openai_humaneval", METRICS, revision="abc", problems=164, temperature=0.0
    )
    card = made(results=results, facts={"Judge": "judge"}, sections=["## Planning\n\nPlan first."])
    (read,) = ModelCard(str(card)).data.eval_results
    assert (read.dataset_type, read.metric_type, read.metric_value) == ("openai/openai_humaneval", "pass@1", 0.25)
    assert read.metric_args == {"interval": [0.2, 0.3], "confidence": 0.95, "problems": 164, "temperature": 0.0}
    assert "| humaneval | pass@1 | 0.250 | 0.200 to 0.300 | problems 164, temperature 0.0 | `abc` |" in card.text
    assert read.dataset_revision == "abc"
    assert "| Judge | `judge` |" in card.text and "\n## Planning\n\nPlan first.\n" in card.text
    assert "No benchmark" not in card.text


def test_scores_replace_earlier_scores(tmp_path: Path):
    file = tmp_path / "README.md"
    made(sections=["## Planning\n\nPlan first."]).save(file)
    humaneval, mbpp = (score_results(name, name, METRICS, problems=3) for name in ("humaneval", "mbpp"))
    add_scores(file, humaneval)
    add_scores(file, mbpp)
    add_scores(file, score_results("humaneval", "humaneval", {**METRICS, "pass@1": 0.75}, problems=3))
    card = ModelCard.load(file)
    assert [(each.dataset_name, each.metric_value) for each in card.data.eval_results] == [
        ("mbpp", 0.25),
        ("humaneval", 0.75),
    ]
    assert card.text.count("## Evaluation") == 1 and "No benchmark" not in card.text
    assert "| mbpp | pass@1 | 0.250 |" in card.text and "| humaneval | pass@1 | 0.750 |" in card.text
    for kept in ("## Planning\n\nPlan first.", "## Use", "## Versions", "A student distilled with AKD"):
        assert kept in card.text


TWO = {"pass@2": 0.75, "pass@2_low": 0.7, "pass@2_high": 0.8}


@pytest.mark.parametrize(
    ("new", "is_kept"),
    [
        ({"problems": 2}, True),
        ({"problems": 59}, True),
        ({"problems": 60}, False),
        ({"problems": 61}, False),
        ({"problems": 2, "metrics": TWO}, True),  # whose outcomes would replace those of 60 problems
        ({"problems": 2, "variant": "with plans"}, False),
        ({"problems": 2, "dataset": "others"}, False),
        ({"problems": 2, "fingerprint": "f01"}, False),
        ({"problems": 2, "revision": "abc"}, True),
        ({}, False),
    ],
)
def test_fewer_problems_of_a_benchmark_never_replace_more(new: dict, is_kept: bool, tmp_path: Path):
    def scores(metrics=METRICS, dataset="tasks", **settings) -> list[EvalResult]:
        return score_results("tasks", dataset, metrics, **{"fingerprint": "f00", **settings})

    file = tmp_path / "README.md"
    made().save(file)
    add_scores_to_file(file, scores(problems=60), {"errors tasks": "### Outcomes\n\nof 60"})
    before = file.read_text()
    new = {"metrics": {**METRICS, "pass@1": 0.75}, **new}
    if is_kept:
        with pytest.raises(FewerProblemsError, match="keeps its score of 60 problems of 'tasks', because the new one"):
            add_scores_to_file(file, scores(**new), {"errors tasks": "### Outcomes\n\nof fewer"})
        assert file.read_text() == before
    else:
        add_scores_to_file(file, scores(**new), {"errors tasks": "### Outcomes\n\nof others"})
        assert 0.75 in [score.metric_value for score in ModelCard.load(file).data.eval_results]
        assert "of others" in file.read_text()


def test_scores_are_added_to_a_card_of_another_tool(tmp_path: Path):
    file = tmp_path / "README.md"
    file.write_text("---\nlicense: mit\n---\n\n# Mine\n\nWords.\n")
    add_scores(file, score_results("three", "three", METRICS))
    card = ModelCard.load(file)
    assert card.data.license == "mit" and card.data.model_name == tmp_path.name
    assert card.text.index("Words.") < card.text.index("## Evaluation")


OTHERS = {
    "section": "# M\n\n## Evaluation\n\nWe ran MT-Bench: 7.1.\n\n### Details\n\nBy hand.\n\n## Use\n\nx",
    "section_with_table": "# M\n\n## Evaluation\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n## Use\n\nx",
    "code": "# M\n\n```bash\n## Evaluation\nrun --all\n```\n\nMore.",
    "other_heading": "# M\n\n## Evaluation results\n\nGood.",
}


@pytest.mark.parametrize("name", OTHERS)
def test_evaluation_sections_of_other_tools_are_kept(name: str, tmp_path: Path):
    file = tmp_path / "README.md"
    file.write_text(f"---\nlicense: mit\n---\n{OTHERS[name]}\n")
    for score in (0.25, 0.75):
        add_scores(file, score_results("three", "three", {**METRICS, "pass@1": score}))
    card = ModelCard.load(file)
    assert OTHERS[name] in card.text
    assert card.text.count("| three | pass@1 |") == 1 and "| three | pass@1 | 0.750 |" in card.text


def test_windows_line_ends(tmp_path: Path):
    file = tmp_path / "README.md"
    made(sections=["## Planning\n\nPlan first."]).save(file)
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    add_scores(file, score_results("three", "three", METRICS))
    assert "No benchmark" not in (card := ModelCard.load(file).text) and card.count("## Evaluation") == 1


def test_scores_with_plans_are_separate(tmp_path: Path):
    file = tmp_path / "README.md"
    made().save(file)
    for score, variant in ((0.1, None), (0.2, "with plans"), (0.3, None), (0.4, "with plans")):
        metrics = {**METRICS, "pass@1": score}
        add_scores(file, score_results("humaneval", "openai/openai_humaneval", metrics, variant=variant))
    card = ModelCard.load(file)
    assert {each.metric_name: each.metric_value for each in card.data.eval_results} == {
        None: 0.3,
        "pass@1 with plans": 0.4,
    }
    assert "| humaneval | pass@1 | 0.300 |" in card.text and "| humaneval | pass@1 with plans | 0.400 |" in card.text
    assert card.text.count("| humaneval |") == 2


def test_scores_of_other_tools_are_only_in_the_metadata(tmp_path: Path):
    file = tmp_path / "README.md"
    theirs = EvalResult("text-generation", "cais/mmlu", "MMLU", "accuracy", 61.2, dataset_config="all")
    named_otherwise = EvalResult("text-generation", "openai/openai_humaneval", "HumanEval", "pass@1", 0.9)
    data = ModelCardData(model_name="m", eval_results=[theirs, named_otherwise])
    ModelCard(f"---\n{data}\n---\n# M\n").save(file)
    for _ in range(2):
        add_scores(file, score_results("humaneval", "openai/openai_humaneval", METRICS))
    card = ModelCard.load(file)
    assert [(each.metric_type, each.metric_value) for each in card.data.eval_results] == [
        ("accuracy", 61.2),
        ("pass@1", 0.25),
    ]
    assert "MMLU" not in card.text and card.text.count("| pass@1 |") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"---\nlicense: [mit\n---\n# M\n",
        b"---\n\tlicense: mit\n---\n# M\n",
        b"---\n- mit\n---\n# M\n",
        b"---\nmodel-index: 3\n---\n# M\n",
        b"---\nmodel-index:\n- name: m\n  results:\n  - task: {type: t}\n---\n# M\n",
        "---\nlicense: mit\n---\n# Müller\n".encode("latin1"),
    ],
)
def test_malformed_card_is_unchanged(content: bytes, tmp_path: Path):
    file = tmp_path / "README.md"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"README\.md cannot be read \(.*\); correct the metadata") as caught:
        add_scores(file, score_results("three", "three", METRICS))
    assert "\n" not in str(caught.value) and file.read_bytes() == content
    assert read_base_model(str(tmp_path), online=False).license in ({}, {"license": "mit"})


def test_a_card_in_the_cache_of_the_hub_is_not_changed(tmp_path: Path):
    blob, link = tmp_path / "blob", tmp_path / "README.md"
    blob.write_text("# M\n")
    link.symlink_to(blob)
    add_scores(link, score_results("three", "three", METRICS))
    assert blob.read_text() == "# M\n" and "| three | pass@1 |" in link.read_text()


def test_the_license_of_a_local_student(tmp_path: Path):
    assert read_base_model(str(tmp_path), online=False).license == {}
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert read_base_model(str(tmp_path), online=False).license == {"license": "apache-2.0"}
    assert read_base_model(None, online=True).license == {}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_folder(tmp_path: Path):
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert git_commit(tmp_path) is None and git_commit(tmp_path / "nowhere") is None
    git("init", "--quiet")
    git("remote", "add", "origin", "https://me:secret@example.org/repository")
    assert git_commit(tmp_path) is None, "no commit yet"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "recipe.yaml").write_text("max_steps: 1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "student").write_text("not tracked")
    assert git_commit(tmp_path / "recipes") == commit == git_commit(tmp_path)
    (tmp_path / "recipes" / "recipe.yaml").write_text("max_steps: 2\n")
    assert git_commit(tmp_path / "outputs") == f"{commit}-dirty"
