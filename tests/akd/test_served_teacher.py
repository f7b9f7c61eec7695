"""Trainers with a teacher behind a server, which is a stand-in for vLLM with a tiny model."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.generation.server import Fault, Server, serving
from trl_akd import AKDConfig, AKDTrainer, CodePLANConfig, CodePLANTrainer
from trl_akd.akd.cache_creation import check_folder
from trl_akd.akd.served import longest_text, served_vocabulary_size
from trl_akd.cli.mock_teacher import score
from trl_akd.generation import GenerationError
from trl_akd.generation.protocol import Usage
from trl_akd.teachers import SparseSignal
from trl_akd.teachers.served import read_usage, usage_file


@pytest.fixture(scope="module")
def teacher_model(pair):
    return AutoModelForCausalLM.from_pretrained(pair[1]).eval()


@pytest.fixture
def server(teacher_model) -> Iterator[Server]:
    tokenizer = tiny.tokenizer()
    with serving() as server:
        server.answer = lambda path, body: score(teacher_model, tokenizer, body)  # type: ignore[method-assign]
        yield server


@pytest.fixture
def served(server, pair, config):
    """Create a trainer with the served teacher, under its path as its name on the server."""

    def make(train_dataset=None, eval_dataset=None, peft_config=None, teacher_model=None, **settings):
        address = {"teacher_base_url": server.url, "teacher_model_name_or_path": pair[1], "teacher_top_k": 8}
        return AKDTrainer(
            tiny.model(seed=1),
            teacher_model,
            config(**{**address, **settings}),
            train_dataset=train_dataset or tiny.rows(8),
            eval_dataset=eval_dataset,
            processing_class=tiny.tokenizer(),
            peft_config=peft_config,
        )

    return make


class TopKAndNext:
    """The most probable tokens of a model in this process and the next token of the text."""

    def __init__(self, model, k):
        self.model, self.k = model, k

    def forward(self, inputs):
        with torch.no_grad():
            log_probs = self.model(**inputs).logits.log_softmax(-1)
        top = SparseSignal.from_logits(log_probs, self.k)
        following = inputs["input_ids"].roll(-1, 1).unsqueeze(-1)
        own = log_probs.gather(-1, following)
        repeated = (top.ids == following).any(-1, keepdim=True)
        ids = torch.cat([top.ids, following.masked_fill(repeated, -1)], dim=-1)
        kept = torch.cat([top.log_probs, own.masked_fill(repeated, -torch.inf)], dim=-1)
        tail = log_probs.scatter(-1, torch.cat([top.ids, following], dim=-1), -torch.inf).logsumexp(-1)
        self.found = SparseSignal(ids, kept, tail)

    def signal(self, student):
        return self.found


def logs(made):
    made.train()
    kept = ("loss", "grad_norm", "entropy", "eval_loss")
    return [{key: log[key] for key in log if key in kept or "kd/" in key} for log in made.state.log_history]


SETTINGS = {
    "default": {},
    "reverse": {"divergence": "reverse_kl"},
    "jsd": {"divergence": "jsd"},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "on_policy": {"lmbda": 1.0, "max_new_tokens": 4},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equals_a_sparse_teacher_in_this_process(served, teacher_model, config, settings):
    held_out = tiny.rows(4, seed=1) if "eval_steps" in settings else None
    expected = AKDTrainer(
        tiny.model(seed=1),
        TopKAndNext(teacher_model, 8),
        config(**settings),
        train_dataset=tiny.rows(8),
        eval_dataset=held_out,
        processing_class=tiny.tokenizer(),
    )
    for ours, theirs in zip(logs(served(eval_dataset=held_out, **settings)), logs(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_all_tokens_equal_the_dense_teacher(served, teacher_model, config):
    settings = {"train_dataset": tiny.rows(8), "processing_class": tiny.tokenizer()}
    dense = AKDTrainer(tiny.model(seed=1), teacher_model, config(), **settings)
    for ours, theirs in zip(logs(served(teacher_top_k=tiny.VOCABULARY)), logs(dense), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_packing(served, server):
    packed = served(packing=True, per_device_train_batch_size=1, max_length=128)
    padded = served(max_length=128)
    whole = padded.data_collator([padded.train_dataset[row] for row in range(8)])
    row = packed.data_collator([packed.train_dataset[0]])
    samples = len(packed.train_dataset[0]["seq_lengths"])
    assert samples > 1
    before = len(server.bodies)
    packed.teacher.forward({key: row[key] for key in ("input_ids", "position_ids")})
    prompts = {tuple(body["prompt"]) for body in server.bodies[before:]}
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(whole["input_ids"], whole["attention_mask"], strict=True)]
    assert len(prompts) == samples
    assert prompts <= {tuple(text) for text in texts}
    assert all(log["loss"] > 0 for log in logs(packed) if "loss" in log)


def test_a_student_with_an_adapter(served):
    made = served(peft_config=LoraConfig(target_modules=["q_proj"]))
    assert all(log["loss"] > 0 for log in logs(made) if "loss" in log)


def test_codeplan(server, pair, tmp_path):
    rows = Dataset.from_dict({"problem": ["Add."] * 4, "solution": ["a + b"] * 4, "plan": ["Use +."] * 4})
    args = CodePLANConfig(
        **{**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256},
        code_objective="akd",
        teacher_base_url=server.url,
        teacher_model_name_or_path=pair[1],
        teacher_top_k=8,
    )
    made = CodePLANTrainer(pair[0], None, args, train_dataset=rows)
    assert all(log["loss"] > 0 for log in logs(made) if "loss" in log)


def test_the_longest_row_is_scored_before_training(served, server):
    rows = tiny.rows(8)
    made = served(train_dataset=rows)
    longest = max(made.train_dataset["input_ids"], key=len)
    assert [body["prompt"] for body in server.bodies] == [longest]
    assert len(longest_text({"train": made.train_dataset}, made.args, tiny.tokenizer())) == len(longest)


@pytest.mark.parametrize(
    ("columns", "length"),
    [
        ({"input_ids": [[1] * 60, [2] * 90]}, 90),
        ({"input_ids": [[1] * 150, [2] * 140], "seq_lengths": [[70, 80], [50, 90]]}, 90),
        ({"input_ids": [[1] * 20, [2] * 30], "prompt_ids": [[1] * 12, [2] * 9]}, 112),
        ({"input_ids": [[], []], "prompt_ids": [[1] * 12, [2] * 9]}, 112),
        ({"input_ids": [[1] * 60, [2] * 90], "prompt_ids": [[], []]}, 90),
        ({"input_ids": [[1]]}, None),
    ],
)
def test_the_length_of_the_longest_text(columns, length, tmp_path):
    args = AKDConfig(str(tmp_path), max_new_tokens=100, **tiny.SHORT_RUN)
    program = longest_text({}, args, tiny.tokenizer())
    assert len(longest_text({"train": Dataset.from_dict(columns)}, args, tiny.tokenizer())) == (length or len(program))


def test_the_longest_row_with_generated_text(served, server):
    made = served(lmbda=1.0, max_new_tokens=100)
    longest = max(map(len, made.train_dataset["prompt_ids"])) + 100
    assert [len(body["prompt"]) for body in server.bodies] == [longest]


def test_the_vocabulary_of_a_served_adapter_is_that_of_its_base_model(tmp_path):
    """Its LM head may have fewer rows than that of the student."""
    tiny.model(vocabulary=tiny.VOCABULARY - 1).save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer = tiny.tokenizer()
    args = AKDConfig(str(tmp_path), teacher_model_name_or_path=str(tmp_path / "adapter"), **tiny.SHORT_RUN)
    assert served_vocabulary_size(args, tokenizer, tokenizer, tiny.VOCABULARY) == tiny.VOCABULARY - 1


def test_an_alias_of_the_teacher(served, server, caplog):
    with caplog.at_level(logging.WARNING):
        made = served(teacher_model_name_or_path="teacher")
    assert "tokenizer of the served teacher 'teacher' cannot be loaded" in caplog.text
    assert made.vocabulary_size == tiny.VOCABULARY
    assert server.bodies[0]["model"] == "teacher"
    assert made.provenance.teacher_revision is None


def test_another_tokenizer_is_found_before_training(served, server, teacher_model):
    other = tiny.tokenizer()
    server.answer = lambda path, body: score(teacher_model, _Shifted(other), body)  # type: ignore[method-assign]
    with pytest.raises(GenerationError, match=r"the longest row in which token id \d+ is .* for the student; serve"):
        served(teacher_model_name_or_path="teacher")


class _Shifted:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def decode(self, ids):
        return self.tokenizer.decode([(token + 1) % 256 for token in ids])


def test_an_unreachable_server_ends_the_set_up(served, monkeypatch):
    monkeypatch.setattr("trl_akd.generation.json_client.JSONClient._pause", lambda *args: 0.0)
    with pytest.raises(GenerationError, match=r"4 attempts.*raise `teacher_max_retries` or `teacher_request_timeout`"):
        served(teacher_base_url="http://127.0.0.1:9/v1")


def test_a_refusal_names_the_fields(served, server):
    server.refuses = lambda body: Fault(400, "Requested prompt logprobs of 8, which is greater than max allowed: 4")
    with pytest.raises(GenerationError, match=r"the longest row .*`--max-logprobs 8`, or lower `teacher_top_k`\.$"):
        served()
    server.refuses = lambda body: Fault(401, "no")
    with pytest.raises(GenerationError, match=r"check `teacher_api_key_env`"):
        served()


def test_the_limit_ends_training(served):
    made = served(teacher_max_requests=6)
    with pytest.raises(GenerationError, match=r"`teacher_max_requests` is reached.*`resume_from_checkpoint`"):
        made.train()
    assert made.state.global_step == 1
    used = json.loads((Path(made.args.output_dir) / "teacher_usage_0.json").read_text())
    assert used == {"requests": 6, "tokens": made.teacher.tokens}
    with pytest.raises(ValueError, match=r"`teacher_max_requests` is 6, of which earlier .* used 6, so less than one"):
        served(teacher_max_requests=6)
    tokens = used["tokens"] + 2 * len(max(made.train_dataset["input_ids"], key=len))
    again = served(teacher_max_tokens=tokens)
    with pytest.raises(GenerationError, match="`teacher_max_tokens` is reached"):
        again.train()
    assert read_usage(Path(made.args.output_dir)).requests > 7


def test_usage_of_all_processes_counts(served, config, tmp_path):
    (tmp_path / "run").mkdir()
    for process, requests in ((0, 3), (7, 4)):
        usage_file(tmp_path / "run", process).write_text(json.dumps({"requests": requests, "tokens": 10}))
    made = served(teacher_max_requests=10)
    assert made.teacher.requests == 1 and read_usage(tmp_path / "run") == Usage(8, 20 + made.teacher.tokens)
    with pytest.raises(ValueError, match=r"`teacher_max_requests` is 8, of which"):
        served(teacher_max_requests=8)
    check_folder(tmp_path / "run")
    usage_file(tmp_path / "run", 7).with_suffix(".json.tmp").write_text("{")  # of an interrupted write
    assert read_usage(tmp_path / "run") == Usage(8, 20 + made.teacher.tokens)
    usage_file(tmp_path / "run", 7).write_text("{")
    with pytest.raises(ValueError, match=r"teacher_usage_7.json, which counts .*, is damaged; delete it"):
        served()


def test_keys_come_from_the_environment(served, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-default")
    monkeypatch.setenv("TEACHER_KEY", "sk-own")
    served()
    served(teacher_api_key_env="TEACHER_KEY")
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer sk-default", "Bearer sk-own"]
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(ValueError, match="`teacher_api_key_env` is 'TEACHER_KEY', but no environment variable"):
        served(teacher_api_key_env="TEACHER_KEY")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"teacher_model_name_or_path": None}, "`teacher_model_name_or_path` is not set; give the model's name"),
        ({"seq_kd": True}, "`seq_kd` is True, but `teacher_base_url` is set, and a server scores texts"),
        ({"teacher_device": "cpu"}, "`teacher_device` is 'cpu', but `teacher_base_url` is set"),
        ({"teacher_model_init_kwargs": {"dtype": "float32"}}, "`teacher_model_init_kwargs` is .*float32.*, but"),
        ({"kd_temperature": 2.0}, r"`kd_temperature` is 2\.0, but .* at temperature 1"),
        ({"divergence": "minillm", "lmbda": 1.0, "temperature": 1.0}, "'minillm', which needs the teacher's prob"),
        ({"divergence": "minillm"}, "'minillm', which needs the teacher's prob"),
        ({"teacher_top_k": 0}, "`teacher_top_k` is 0; give an integer of at least 1"),
        ({"teacher_top_k": 321}, "`teacher_top_k` is 321; give a number between 1 and the 320 tokens"),
        ({"teacher_concurrency": "many"}, "`teacher_concurrency` is 'many'; give an integer"),
        ({"teacher_max_tokens": 0}, "`teacher_max_tokens` is 0; give an integer of at least 1 or None"),
        ({"teacher_max_retries": -1}, "`teacher_max_retries` is -1"),
        ({"teacher_max_retries": 1.5}, "`teacher_max_retries` is 1.5; give an integer of at least 0"),
        ({"teacher_request_timeout": 0.0}, "`teacher_request_timeout` is 0"),
        ({"teacher_request_timeout": "soon"}, "`teacher_request_timeout` is 'soon'; give a number of seconds"),
        ({"teacher_base_url": ""}, "`teacher_base_url` is ''; give an address such as"),
        ({"teacher_base_url": "http://me:pass@host/v1"}, "`teacher_base_url` contains .*use `teacher_api_key_env`"),
        ({"teacher_base_url": "localhost:8000"}, "`teacher_base_url` is 'localhost:8000'; give an address such as"),
        (
            {"teacher_base_url": None},
            "`teacher_top_k` is 8, which is for the teacher's server; give",
        ),
    ],
)
def test_settings_that_a_server_refuses(served, settings, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        served(**settings)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("teacher", ["other/teacher", tiny.model("qwen2", hidden=48)], ids=["name", "model"])
def test_two_teachers(served, teacher):
    with pytest.raises(ValueError, match="`teacher_model` is given and `teacher_base_url` is set"):
        served(teacher_model=teacher)
