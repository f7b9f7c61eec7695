"""Scores of prompt templates, against their definition, and the command `trl-akd templates`."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from trl_akd.cli import main
from trl_akd.data.templates import render
from trl_akd.evaluation import template_scores
from trl_akd.evaluation.template_scores import TemplateScores, score_templates, summarize_templates, template_table

LOG2 = math.log(2)
TEMPLATES = ("alpaca", "comment", "starcoder")
ROWS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Reverse the list.", "input": "", "output": "xs[::-1]"},
    {"instruction": "Nothing.", "input": "", "output": ""},  # without an answer: dropped
    {"instruction": "Count.", "input": "", "output": "len(xs) + 0"},
]


@pytest.fixture(scope="module")
def model():
    return tiny.model("llama")


@torch.no_grad()
def scores_by_definition(model, row: dict, template: str) -> tuple[float, float]:
    tokenizer = tiny.tokenizer()
    prompt = tokenizer(render(template, row["instruction"], row["input"]))["input_ids"]
    answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
    probabilities = model.double()(torch.tensor([prompt + answer])).logits[0].softmax(-1)
    model.float()
    log_probs, entropies = [], []
    for place, token in enumerate(answer, start=len(prompt)):
        distribution = probabilities[place - 1].tolist()
        log_probs.append(math.log(distribution[token]))
        entropies.append(-sum(p * math.log(p) for p in distribution))
    return sum(log_probs) / len(answer), sum(entropies) / len(answer)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_means_over_the_tokens_of_each_answer(model, batch_size: int):
    found = score_templates(model, tiny.tokenizer(), Dataset.from_list(ROWS), TEMPLATES, batch_size=batch_size)
    assert tuple(found) == TEMPLATES
    for template, scores in found.items():
        expected = [scores_by_definition(model, row, template) for row in ROWS if row["output"]]
        assert list(zip(scores.log_probs, scores.entropies, strict=True)) == [
            pytest.approx(pair, abs=1e-5) for pair in expected
        ]


def test_tokens_are_scored_in_chunks(model, monkeypatch: pytest.MonkeyPatch):
    whole = score_templates(model, tiny.tokenizer(), Dataset.from_list(ROWS), TEMPLATES)
    monkeypatch.setattr("trl_akd.evaluation.template_scores._TOKENS_PER_CHUNK", 3)
    chunked = score_templates(model, tiny.tokenizer(), Dataset.from_list(ROWS), TEMPLATES)
    for template in TEMPLATES:
        assert chunked[template].log_probs == pytest.approx(whole[template].log_probs, abs=1e-6)


def test_a_row_that_is_too_long_with_one_template_is_left_out_for_all(model):
    longer = {"instruction": "Add all the numbers.", "input": "", "output": "sum(xs)"}
    short = len(render("alpaca", ROWS[1]["instruction"])) + len(ROWS[1]["output"]) + 1  # bytes are tokens
    dataset = Dataset.from_list([longer, ROWS[1]])
    found = score_templates(model, tiny.tokenizer(), dataset, ("comment", "alpaca"), max_length=short)
    expected = score_templates(model, tiny.tokenizer(), dataset.select([1]), ("comment", "alpaca"))
    assert {name: len(scores.log_probs) for name, scores in found.items()} == {"comment": 1, "alpaca": 1}
    for name, scores in found.items():
        assert scores.log_probs == pytest.approx(expected[name].log_probs)
    with pytest.raises(ValueError, match=rf"no row fits into {short - 1} tokens with all templates, the shortest"):
        score_templates(model, tiny.tokenizer(), dataset, ("comment", "alpaca"), max_length=short - 1)


def test_an_impossible_token_adds_no_entropy():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert template_scores._score_tokens(logits, torch.tensor([0])).tolist() == [pytest.approx([-LOG2, LOG2])]


def test_logits_that_are_not_finite_are_refused_and_uniform_ones_have_the_entropy_of_the_vocabulary():
    dataset, tokenizer = Dataset.from_list(ROWS), tiny.tokenizer()
    broken = tiny.model("llama")
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match=r"the template 'alpaca' are not finite; load it in another precision"):
        score_templates(broken, tokenizer, dataset, TEMPLATES)
    torch.nn.init.constant_(broken.lm_head.weight, 0.0)
    scores = score_templates(broken, tokenizer, dataset, ("alpaca",))["alpaca"]
    entropy = math.log(broken.config.vocab_size)
    assert scores.log_probs == pytest.approx([-entropy] * 3) and scores.entropies == pytest.approx([entropy] * 3)


def test_summary_and_table():
    scores = {
        "a": TemplateScores([-1.0, -2.0, -3.0], [0.5, 0.5, 0.5]),
        "b": TemplateScores([-1.0, -1.0, -2.0], [0.5, 0.25, 0.75]),
    }
    summary = summarize_templates(scores)
    assert (summary["rows"], summary["best"]) == (3, "b")
    rows = summary["templates"]
    assert [rows[name]["rows_most_likely"] for name in "ab"] == [1, 3], "ties count for both"
    assert [rows[name]["rows_least_entropy"] for name in "ab"] == [2, 2]
    assert rows["a"]["minus_best"] == pytest.approx([-2 / 3, -2 / 3 - 1.434, -2 / 3 + 1.434], abs=1e-3)
    assert "minus_best" not in rows["b"]
    assert template_table(summary).splitlines()[2:] == [
        "| b | -1.333 |  | 0.500 | 3 | 2 |",
        "| a | -2.000 | -0.667 [-2.101, +0.768] | 0.500 | 1 | 2 |",
    ]
    alone = summarize_templates({name: TemplateScores([-1.0], [0.0]) for name in "ab"})
    assert "minus_best" not in alone["templates"]["b"], "one row has no interval"


@pytest.fixture(scope="module")
def files(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    model.save_pretrained(folder / "teacher")
    tiny.tokenizer().save_pretrained(folder / "teacher")
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (folder / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    return folder


def test_the_command_prints_a_table_and_writes_the_scores(files: Path, capsys: pytest.CaptureFixture[str]):
    output = files / "made" / "templates.json"
    flags = ["--model_name_or_path", str(files / "teacher"), "--dataset_name", str(files / "rows.jsonl")]
    flags += ["--templates", "comment", "alpaca", "--dataset_train_split", "train", "--output_file", str(output)]
    assert main(["templates", *flags]) == 0
    found = json.loads(output.read_text())
    assert found["rows"] == 3 and set(found["by_row"]) == {"comment", "alpaca"}
    out = capsys.readouterr().out
    assert "3 of 4 rows" in out and template_table(found) in out and str(output) in out


def test_the_command_takes_an_adapter(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = AutoModelForCausalLM.from_pretrained(files / "teacher")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    tables = []
    for folder in (files / "teacher", tmp_path):  # an untrained adapter changes nothing
        flags = ["--model_name_or_path", str(folder), "--dataset_name", str(files / "rows.jsonl")]
        assert main(["templates", *flags]) == 0
        tables.append(capsys.readouterr().out.split("rows", 1)[1])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_name_or_path": None}, "`model_name_or_path` is not set"),
        ({"dataset_name": None}, "`dataset_name` is not set"),
        ({"templates": ["alpaca", "alpacca"]}, "'alpacca' is unknown"),
        ({"templates": ["alpaca"]}, "give at least two templates, each once"),
        ({"templates": ["alpaca", "alpaca"]}, "give at least two templates, each once"),
        ({"max_length": ["1"]}, "`max_length` is 1; give an integer of at least 2"),
        ({"batch_size": ["0"]}, "`batch_size` is 0; give an integer of at least 1"),
        ({"dataset_name": ["pairs.jsonl"]}, "to which no prompt template applies"),
        ({"dataset_name": ["none.jsonl"]}, "none.jsonl"),
        ({"model_name_or_path": ["./none"]}, "none"),
        ({"max_length": ["20"]}, "no row fits into 20 tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_are_refused_in_one_sentence(
    flags: dict, message: str, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(files)
    values = {"model_name_or_path": ["./teacher"], "dataset_name": ["rows.jsonl"], **flags}
    arguments = [word for name, words in values.items() if words for word in (f"--{name}", *words)]
    assert main(["templates", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
