"""Training a judge from the command line."""

import json
from pathlib import Path

import pytest

from tests import tiny
from trl_akd.cli import judge as command
from trl_akd.cli import main
from trl_akd.cli.errors import run
from trl_akd.iterkd.judge.judges import RegressionJudge
from trl_akd.iterkd.judge.rubric import Judgement


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A tiny model, and judgements, one of which cannot be parsed."""
    tiny.model(max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    rows = [
        {"instruction": f"Print {number}.", "answer": f"print({number})", "scores": [number % 3, 1, 0.5, 0, 0]}
        for number in range(12)
    ]
    refused = {"instruction": "…", "response": "It is fine."}
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, refused]))
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "torn.json").write_text("[{")
    (tmp_path / "odd.json").write_text("{}")
    return ["--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "data.jsonl")]


TRAINING = ["--max_steps", "2", "--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--test_size", "0.25"]


def test_train_a_regression_judge(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "judge"
    command.main(["train", *files, *TRAINING, "--max_length", "64", "--output_dir", str(out)])
    assert "12 judgements; not readable and left out: 1 no_scores." in capsys.readouterr().out
    metrics = json.loads((out / "eval_results.json").read_text())
    assert metrics["eval_unjudged"] == 0.0 and metrics["eval_mean_absolute_error"] >= 0.0
    [found] = RegressionJudge.from_pretrained(str(out)).judge([("Print 1.", "print(1)")])
    assert isinstance(found, Judgement)


def test_train_a_generative_judge(files: list[str], tmp_path: Path):
    out, prompt = tmp_path / "judge", tmp_path / "prompt.txt"
    prompt.write_text("{instruction}\n{answer}\n")
    files[-1] = str(tmp_path / "data.json")
    settings = ["--kind", "generative", "--prompt_file", str(prompt), "--max_length", "250", "--max_new_tokens", "4"]
    command.main(["train", *files, *TRAINING, *settings, "--output_dir", str(out)])
    metrics = json.loads((out / "eval_results.json").read_text())
    assert metrics["eval_unjudged"] == 1.0 and metrics["eval_loss"] > 0 and (out / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["regression", "generative"])
def test_a_judge_resumes(kind: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "judge"
    flags = ["judge", "train", *files, *TRAINING, "--kind", kind, "--max_length", "2048", "--max_new_tokens", "2"]
    flags += ["--output_dir", str(out), "--save_strategy", "steps", "--save_steps", "1", "--resume_from_checkpoint"]
    assert main([*flags, "true"]) == 2
    assert "`resume_from_checkpoint` is true, but `output_dir`" in capsys.readouterr().err
    assert main([*flags, "false"]) == 0
    assert main([*flags, "false"]) == 2
    assert "has checkpoints of an earlier run, which this one would replace" in capsys.readouterr().err
    assert main([*flags, "true", "--max_steps", "3"]) == 0
    state = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and (out / "checkpoint-2").is_dir()
    assert main([*flags, str(out / "checkpoint-2"), "--max_steps", "4"]) == 0
    assert (out / "checkpoint-4").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regression", "generative"])
def test_a_judge_in_two_processes(kind: str, files: list[str], tmp_path: Path):
    out = tmp_path / "judge"
    settings = ["--kind", kind, "--max_steps", "2", "--report_to", "none", "--bf16", "false", "--test_size", "0.25"]
    settings += ["--max_length", "2048", "--max_new_tokens", "2", "--output_dir", str(out)]
    launched = ["--accelerate_config", "ddp_cpu", "--num_processes", "2"]
    assert main(["judge", "train", *files, *settings, *launched]) == 0
    assert "eval_unjudged" in json.loads((out / "eval_results.json").read_text())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dance"], "'dance' is not an action of `trl-akd judge`; choose one of train"),
        (["train"], "`model_name_or_path` is missing"),
        (["train", "--model_name_or_path", "x"], "`train_file` is missing"),
        (["train", "MODEL", "--max_new_tokens", "0"], "`max_new_tokens` is 0"),
        (["train", "MODEL", "--prompt_file", "x"], "`prompt_file` has no effect on a regression judge"),
        (["train", "MODEL", "--prompt_file", "x", "--kind", "generative"], "`prompt_file` 'x' cannot be used"),
        (["train", "MODEL", "--test_size", "0.001"], "does not split 12 problems into two parts"),
        (["train", "MODEL", "--train_file", "none.jsonl"], "There is no file 'none.jsonl'"),
        (["train", "MODEL", "--train_file", "none.json"], "There is no file 'none.json'"),
        (["train", "MODEL", "--train_file", "ODD"], "is not a JSON list of objects"),
        (["train", "MODEL", "--train_file", "TORN"], "is not JSON"),
        (["train", "MODEL", "--knd", "regression"], "did you mean `--kind`"),
    ],
)
def test_errors_have_one_sentence(
    argv: list[str], message: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = {"MODEL": [*files, "--use_cpu", "true", "--bf16", "false"], "ODD": [str(tmp_path / "odd.json")]}
    given["TORN"] = [str(tmp_path / "torn.json")]
    assert run(command.main, [flag for word in argv for flag in given.get(word, [word])]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_help(capsys: pytest.CaptureFixture[str]):
    assert run(command.main, []) == 0
    assert "trl-akd judge train" in capsys.readouterr().out
