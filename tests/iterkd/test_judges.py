import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaConfig
from trl import SFTConfig

from tests import tiny
from tests.generation.server import Fault, serving
from tests.iterkd.scripted import soda
from trl_akd.generation import Completion, GenerationError, OpenAIGenerator
from trl_akd.iterkd.judge.judges import GenerativeJudge, RegressionJudge, nearest_judgement, requesting_json
from trl_akd.iterkd.judge.prompts import JUDGE_PROMPT, JudgePrompt
from trl_akd.iterkd.judge.rubric import RULES, Judgement, Unjudged, format_judgement
from trl_akd.iterkd.judge.training import (
    JudgedAnswer,
    judge_held_out,
    judge_metrics,
    make_generative_trainer,
    make_regression_trainer,
    read_judgements,
)

GOOD, POOR = Judgement((2.0, 1.0, 1.0, 0.5, 0.5)), Judgement((0.0, 0.0, 0.5, 0.5, 0.0))


class Scripted:
    """Generator that replies with `write(prompt, seed)` and records its requests."""

    def __init__(self, write) -> None:
        self.write = write
        self.calls: list[tuple[list[str], dict]] = []

    def generate(self, prompts, **settings):
        self.calls.append((list(prompts), settings))
        return [[Completion(self.write(prompt, settings["seed"]), None, "stop", None)] for prompt in prompts]


# A judge that writes


def test_a_generative_judge_keeps_the_order():
    generator = Scripted(lambda prompt, seed: format_judgement(GOOD if "2 * x" in prompt else POOR))
    judge = GenerativeJudge(generator, format_prompt=lambda request: f"<user>{request}", max_new_tokens=99, stop=["#"])
    pairs = [("Double x.", "x"), ("Double x.", "2 * x"), ("Double x.", "x")]
    assert judge.judge(pairs) == [POOR, GOOD, POOR]
    [(prompts, settings)] = generator.calls
    assert prompts == ["<user>" + JUDGE_PROMPT.render(*pair) for pair in pairs[:2]], "equal pairs are asked about once"
    assert settings == {"temperature": 0.0, "max_new_tokens": 99, "stop": ("#",), "seed": 0}


def test_unparsable_judgements_are_sampled_again():
    def write(prompt: str, seed: int) -> str:
        if "never" in prompt:
            return "No." if seed < 9 else "Score:\nRule 1: 2"
        return format_judgement(GOOD) if "at once" in prompt or seed == 8 else "No."

    generator = Scripted(write)
    judge = GenerativeJudge(generator, prompt=JudgePrompt("{instruction}{answer}"), retries=2, seed=7)
    pairs = [("", "never"), ("", "at once"), ("", "later")]
    assert judge.judge(pairs) == [Unjudged("missing_score"), GOOD, GOOD], "the last attempt's reason stands"
    assert [prompts for prompts, _ in generator.calls] == [
        ["never", "at once", "later"],
        ["never", "later"],
        ["never"],
    ]
    assert [settings["temperature"] for _, settings in generator.calls] == [0.0, 0.7, 0.7]
    assert [settings["seed"] for _, settings in generator.calls] == [7, 8, 9]
    assert judge.judge([]) == []


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_a_number_that_the_token_limit_may_have_cut_is_no_score(finish_reason):
    class Cut:
        def generate(self, prompts, **settings):
            text = format_judgement(Judgement((2, 1, 1, 0.5, 0)))
            return [[Completion(text, None, finish_reason, None)] for _ in prompts]

    [found] = GenerativeJudge(Cut()).judge([("Double x.", "2 * x")])
    assert found == (Unjudged("missing_score") if finish_reason == "length" else Judgement((2, 1, 1, 0.5, 0)))


@pytest.mark.parametrize("takes_json", [True, False])
def test_a_server_gets_a_json_schema_and_any_reply_is_parsed(takes_json: bool):
    with serving() as server:
        refused = set() if takes_json else {"response_format"}
        server.refuses = lambda body: Fault(400, "no response_format here") if refused & set(body) else None
        written = {"analysis": "ok", **{f"rule_{number}": score for number, score in enumerate(GOOD.scores, 1)}}
        server.answer = lambda path, body: {
            "choices": [
                {"message": {"content": json.dumps(written) if takes_json else format_judgement(GOOD)}},
            ]
        }
        generator, prompt = requesting_json(OpenAIGenerator(server.url, "m", chat=True), JUDGE_PROMPT)
        assert GenerativeJudge(generator, prompt=prompt).judge([("Add.", "a + b")]) == [GOOD]
        assert "JSON" in server.bodies[-1]["messages"][0]["content"]
        assert ("response_format" in server.bodies[-1]) is takes_json


def test_custom_prompts_and_models_in_this_process_get_no_json_schema():
    own, local = JudgePrompt("{instruction}{answer}"), Scripted(lambda prompt, seed: "")
    server = OpenAIGenerator("http://localhost:1/v1", "m")
    assert requesting_json(server, own) == (server, own)
    assert requesting_json(local, JUDGE_PROMPT) == (local, JUDGE_PROMPT)


def test_a_generator_that_fails_is_not_a_judgement():
    class Broken:
        def generate(self, prompts, **settings):
            raise GenerationError("The server is gone.")

    with pytest.raises(GenerationError):
        GenerativeJudge(Broken()).judge([("a", "b")])


@pytest.mark.parametrize("settings", [{"retries": -1}, {"retry_temperature": 0.0}])
def test_settings_of_a_generative_judge(settings: dict):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is"):
        GenerativeJudge(Scripted(str), **settings)


# A judge that predicts


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([float("inf"), float("-inf")]), min_size=5, max_size=5))
def test_the_nearest_judgement_is_the_nearest(outputs: list[float]):
    for rule, score, output in zip(RULES, nearest_judgement(outputs).scores, outputs, strict=True):
        allowed = [step / 2 for step in range(int(2 * rule.maximum) + 1)]
        within = min(max(output, 0.0), rule.maximum)
        assert abs(score - within) == min(abs(other - within) for other in allowed)


def test_a_prediction_of_nan_is_no_judgement():
    with pytest.raises(ValueError, match="the judge predicts NaN"):
        nearest_judgement([0.0, float("nan"), 0.0, 0.0, 0.0])


def classifier(num_labels: int = 5):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        num_labels=num_labels,
        pad_token_id=256,
        eos_token_id=257,
        bos_token_id=None,
    )
    return AutoModelForSequenceClassification.from_config(config)


def arguments(folder: Path, **settings) -> SFTConfig:
    common = {
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "max_length": 256,
        "seed": 0,
    }
    return SFTConfig(str(folder), **{**common, **settings})


def judged(number: int) -> list[JudgedAnswer]:
    """Judgements that depend on the words of the answer."""
    rows = []
    for index in range(number):
        judgement = (GOOD, POOR)[index % 2]
        answer = f"print({index})" if judgement is GOOD else f"I cannot {index}"
        rows.append(JudgedAnswer(f"Print {index}.", answer, judgement, format_judgement(judgement)))
    return rows


def test_a_regression_judge_learns_is_saved_and_judges(tmp_path: Path):
    rows = judged(80)
    args = arguments(tmp_path, max_steps=60)
    trainer = make_regression_trainer(classifier(), tiny.tokenizer(), args, rows[:64], rows[64:])
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_mean_absolute_error"] < 0.5 and metrics["eval_rank_correlation"] > 0.9
    trainer.save_model()
    judge = RegressionJudge.from_pretrained(str(tmp_path), batch_size=3)
    pairs = [(row.instruction, row.answer) for row in rows[64:72]]
    found = judge.judge(pairs)
    assert judge_metrics(found, [row.judgement for row in rows[64:72]])["mean_absolute_error"] < 0.5
    assert [judge.judge([pair])[0] for pair in pairs] == found, "company makes no difference"
    assert judge.judge([]) == []


def test_accumulated_batches_train_as_one(tmp_path: Path):
    """The model's own loss would be too large by the number of accumulated batches."""
    found = []
    for batch, steps in ((8, 1), (2, 4)):
        args = arguments(
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=1e-2,
        )
        trainer = make_regression_trainer(classifier(), tiny.tokenizer(), args, judged(16))
        trainer.train()
        found.append(trainer.model.score.weight.detach())
    torch.testing.assert_close(*found)


def test_requirements_of_a_regression_judge(tmp_path: Path):
    with pytest.raises(ValueError, match="the model has 2 classes; load it with num_labels=5"):
        make_regression_trainer(classifier(2), tiny.tokenizer(), arguments(tmp_path), judged(8))
    with pytest.raises(ValueError, match="`max_length` is missing"):
        make_regression_trainer(classifier(), tiny.tokenizer(), arguments(tmp_path, max_length=None), judged(8))
    with pytest.raises(ValueError, match="not the rules of the rubric; train a judge"):
        RegressionJudge(classifier(), tiny.tokenizer())


# A judge that is trained to write


def test_a_generative_judge_learns_to_write_judgements(tmp_path: Path):
    prompt = JudgePrompt("{answer}\n{instruction}\n")
    rows = [
        JudgedAnswer(
            "?", "ok" if index % 2 else "no", (POOR, GOOD)[index % 2], format_judgement((POOR, GOOD)[index % 2])
        )
        for index in range(16)
    ]
    args = arguments(tmp_path, max_steps=40, learning_rate=1e-2, per_device_eval_batch_size=2)
    trainer = make_generative_trainer(tiny.model(), tiny.tokenizer(), args, rows, rows[:2], prompt=prompt)
    trainer.train()
    metrics = judge_held_out(trainer, rows[:2], prompt=prompt, max_new_tokens=180)
    assert metrics == {"unjudged": 0.0, "mean_absolute_error": 0.0, "rank_correlation": 1.0}


def test_judgements_that_are_too_long_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    prompt = JudgePrompt("{instruction}{answer}\n")
    rows = [*judged(3), JudgedAnswer("x" * 300, "x", GOOD, format_judgement(GOOD))]
    trainer = make_generative_trainer(tiny.model(), tiny.tokenizer(), arguments(tmp_path), rows, prompt=prompt)
    assert len(trainer.train_dataset) == 3 and "Skipped 1 of 4 judgements longer than max_length=256" in caplog.text
    learned = tiny.tokenizer().decode([token for token in trainer.train_dataset[0]["labels"] if token != -100])
    assert learned == f"{format_judgement(GOOD)}<|endoftext|>", "the whole judgement, its end, and nothing else"
    with pytest.raises(ValueError, match="but every judgement is longer"):
        make_generative_trainer(tiny.model(), tiny.tokenizer(), arguments(tmp_path, max_length=20), rows)


# Data and metrics


def test_the_released_judgements_are_data():
    rows = soda("scoring_data.json")
    found, refused = read_judgements(rows)
    assert len(found) == 98 and refused == Counter(missing_score=1, not_a_number=1)
    for row in found:
        assert row.instruction and row.answer and "#End" not in row.instruction + row.answer
        assert row.text.startswith("Code Analysis:") or "Code Analysis" in row.text
    assert found[0].instruction.startswith("Would you be able to elaborate")
    assert found[0].answer.startswith("Google BigQuery is") and found[0].judgement.total == 1.5


def test_a_judge_is_trained_on_the_released_judgements(tmp_path: Path):
    found, _ = read_judgements(soda("scoring_data.json"))
    args = arguments(tmp_path, max_steps=4, max_length=128)
    trainer = make_regression_trainer(classifier(), tiny.tokenizer(), args, found[:80], found[80:])
    before = trainer.evaluate()["eval_mean_absolute_error"]
    trainer.train()
    assert trainer.evaluate()["eval_mean_absolute_error"] < before


def test_custom_rows():
    row = {"instruction": "Double x.", "answer": "2 * x", "scores": [2, 0, 1, 0.5, 0.5]}
    [found], refused = read_judgements([row])
    assert found.judgement.total == 4.0 and found.text == format_judgement(found.judgement) and not refused
    words = f"Code Analysis: well.\n{found.text}"
    [found], _ = read_judgements([{**row, "response": words}])
    assert found.text == words
    with pytest.raises(ValueError, match="`response` does not have the scores of `scores`"):
        read_judgements([{**row, "response": format_judgement(GOOD)}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "x", "answer": "y"}, "row 0 of the judgements cannot be used"),
        ({"instruction": "x", "response": format_judgement(GOOD)}, "`instruction` does not contain 'Here is"),
        ({"instruction": 3, "answer": "y", "scores": [0] * 5}, "`instruction` is not a text"),
        ({"instruction": "x", "answer": "y", "scores": [0] * 4}, "`scores` has 4 numbers"),
        ({"instruction": "x", "answer": "y", "scores": [0.1] + [0] * 4}, "has 0.1"),
        ({"instruction": "x", "answer": "y", "scores": None}, "row 0"),
        ({"instruction": "x", "response": "It is fine."}, r"can be parsed; the reasons are \{'no_scores': 1\}"),
    ],
)
def test_invalid_rows_are_refused(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        read_judgements([row])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_metrics_by_hand(pairs: list[tuple[int, int]]):
    """Spearman's correlation by counting, for each value, those below and half of those equal."""

    def judgement(points: int) -> Judgement:
        return Judgement((points / 2, 0.0, 0.0, 0.0, 0.0))

    def ranks(values: list[int]) -> list[float]:
        return [
            sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values
        ]

    got, due = map(list, zip(*pairs, strict=True))
    found = judge_metrics([*map(judgement, got), Unjudged("no_scores")], [*map(judgement, due), GOOD])
    assert found["unjudged"] == pytest.approx(1 / (len(pairs) + 1))
    assert found["mean_absolute_error"] == pytest.approx(sum(abs(a - b) for a, b in pairs) / 2 / len(pairs))
    if len(set(got)) > 1 and len(set(due)) > 1:
        assert found["rank_correlation"] == pytest.approx(np.corrcoef(ranks(got), ranks(due))[0, 1])
    else:
        assert "rank_correlation" not in found


def test_metrics_of_nothing():
    assert judge_metrics([], []) == {}
    assert judge_metrics([Unjudged("no_scores")], [GOOD]) == {"unjudged": 1.0}
