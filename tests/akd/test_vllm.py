"""On-policy text from vLLM, here a double with the weights that it was sent, equals that from transformers."""

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close

from tests import tiny
from trl_akd.akd.on_policy import Prompt, is_on_policy
from trl_akd.generation import GenerationError

from .vllm_double import SUPPORTED, Engine, install, serving

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
SETTINGS = {
    "lmbda": 1.0,
    "max_new_tokens": 8,
    "max_steps": 3,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "divergence": "reverse_kl",
    "optim": "sgd",
    "learning_rate": 0.05,
}


@pytest.fixture
def vllm(monkeypatch):
    if not SUPPORTED:
        pytest.skip("vLLM needs TRL 1.11")
    install(monkeypatch)


@pytest.fixture
def served(vllm, pair):
    """Settings of a server with the student's initial weights."""
    with serving(pair[0]) as (url, _):
        yield {"vllm_mode": "server", "vllm_server_base_url": url}


def made_and_trained(trainer, **settings):
    torch.manual_seed(0)  # of the adapter; not every version of TRL seeds it
    made = trainer(**{**SETTINGS, **settings})
    made.train()
    return made


def assert_same_weights(found, expected):
    for name, value in expected.model.state_dict().items():
        assert_close(found.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def steps_with_text(made):
    """Number of optimizer steps in which the student generates text."""
    micro_batches = range(made.args.gradient_accumulation_steps)
    return sum(
        any(is_on_policy(made.lmbda, seed=made.args.seed, step=step, micro_batch=number) for number in micro_batches)
        for step in range(made.state.global_step)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"peft_config": LoraConfig(**LORA)},
        {
            "vllm_enable_sleep_mode": True,
            "lmbda": 0.3,
            "seq_kd": True,
            "max_steps": 5,
            "gradient_accumulation_steps": 1,
        },
    ],
    ids=["full", "lora", "sleep-and-seq_kd"],
)
def test_training_equals_that_with_transformers(trainer, vllm, settings):
    found = made_and_trained(trainer, use_vllm=True, **settings)
    settings = {name: value for name, value in settings.items() if "vllm" not in name}
    expected = made_and_trained(trainer, **settings)
    assert_same_weights(found, expected)
    [engine] = Engine.made
    assert engine.synced == steps_with_text(found)
    assert 0 < engine.synced <= found.state.max_steps
    assert (engine.synced < found.state.max_steps) == (found.lmbda < 1)
    student = trainer()
    assert any(
        not torch.equal(value, vars(engine.parameters)[name]) for name, value in student.model.named_parameters()
    )


def test_training_with_a_server_equals_that_with_transformers(trainer, served):
    settings = {"log_completions": True, "peft_config": LoraConfig(**LORA)}
    found = made_and_trained(trainer, use_vllm=True, **served, **settings)
    assert_same_weights(found, made_and_trained(trainer, **settings))
    [engine] = Engine.made
    assert engine.synced == 3
    assert len({params.seed for _, params in engine.seen}) == len(engine.seen) == 12


@pytest.mark.parametrize("changed", [{"do_sample": False}, {"max_new_tokens": 3, "temperature": 0.5, "top_p": 0.8}])
def test_generation_config_applies(trainer, vllm, changed):
    texts = []
    for settings in ({"use_vllm": True}, {}):
        made = trainer(**{**SETTINGS, **settings})
        for name, value in changed.items():
            setattr(made.generation_config, name, value)
        batch = next(iter(made.get_train_dataloader()))
        texts.append(made._complete([batch])[0]["input_ids"].tolist())
    assert texts[0] == texts[1]


def test_weights_are_copied_after_resuming(trainer, vllm, tmp_path):
    settings = {"use_vllm": True, "save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path)}
    whole = made_and_trained(trainer, **settings)
    resumed = trainer(**{**SETTINGS, **settings})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(resumed, whole)
    assert [engine.synced for engine in Engine.made] == [3, 1]
    with torch.no_grad():
        whole.model.lm_head.weight.zero_()
    whole.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(resumed, whole)


def test_frozen_weights_do_not_change(trainer, vllm):
    """Merging an adapter in bfloat16 and subtracting it again would change them."""
    made = trainer(
        **{**SETTINGS, "learning_rate": 10.0},
        use_vllm=True,
        model_init_kwargs={"dtype": "bfloat16"},
        peft_config=LoraConfig(**LORA),
    )
    before = {name: value.clone() for name, value in made.model.named_parameters() if not value.requires_grad}
    made.train()
    found = dict(made.model.named_parameters())
    assert len(before) > 10
    assert all(torch.equal(found[name], value) for name, value in before.items())


def test_random_state_does_not_change(trainer, vllm):
    made = trainer(**SETTINGS, use_vllm=True)

    def drawn(function=lambda: None):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        function()
        return random.random(), np.random.rand(), torch.rand(1).item()

    expected = drawn()
    assert drawn(made._start_vllm) == expected
    assert drawn(lambda: made._sample_student([Prompt([5, 6, 7], seed=1), Prompt([8, 9], seed=2)])) == expected


def test_only_shared_ids_are_sampled(trainer, vllm, tmp_path):
    student = tiny.model(vocabulary=400)
    student.save_pretrained(tmp_path / "student")
    tiny.tokenizer().save_pretrained(tmp_path / "student")
    settings = {**SETTINGS, "max_new_tokens": 40, "use_vllm": True}
    made = trainer(str(tmp_path / "student"), **settings)
    batches = [next(iter(made.get_train_dataloader()))]
    assert max(batch["input_ids"].max() for batch in made._complete(batches)) < 320
    assert Engine.made[0].seen[0][1].logit_bias == dict.fromkeys(range(320, 400), -100.0)
    Engine.made[0].complete = lambda prompt, params: [5, 333]
    with pytest.raises(GenerationError, match=r"vLLM returned the token ids \[333\], which the teacher lacks"):
        made._complete(batches)
    tiny.model(vocabulary=2000).save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="1680 token ids that the teacher lacks, and vLLM can exclude 1024"):
        trainer(str(tmp_path / "student"), **settings)


# Bad input


def test_prompts_must_leave_room_for_the_completion(trainer, served):
    with pytest.raises(ValueError, match=r"a prompt has \d+ tokens, .* exceeds vLLM's context of 16 tokens; raise"):
        trainer(**SETTINGS, use_vllm=True, vllm_max_model_length=16)
    made = trainer(**{**SETTINGS, "max_new_tokens": 250}, use_vllm=True, **served)
    with pytest.raises(
        GenerationError, match=r"vLLM's server did not complete a prompt of .*too long.*see the server's"
    ):
        made._complete([next(iter(made.get_train_dataloader()))])


def test_failures_of_vllm_during_training_are_one_sentence(trainer, vllm, monkeypatch):
    made = trainer(**SETTINGS, use_vllm=True)
    batches = [next(iter(made.get_train_dataloader()))]
    with pytest.raises(GenerationError, match=r"a prompt has 600 tokens, .* exceeds vLLM's context of"):
        made._sample_student([Prompt([5] * 600, seed=1)])
    for name, failure in (("sync_weights", "the student's weights could not be copied"), ("generate", "2 prompts")):
        with monkeypatch.context() as patch:
            patch.setattr(made._vllm_sampler._vllm, name, fail)
            with pytest.raises(GenerationError, match=rf"{failure} .*out of memory.*resume from the last") as caught:
                made._complete(batches)
        assert "\n" not in str(caught.value) and isinstance(caught.value.__cause__, ValueError)
    made._complete(batches)


def fail(*args, **kwargs):
    raise ValueError("out of memory.\nsecond line")


@pytest.mark.parametrize(
    ("settings", "changes", "error"),
    [
        ({}, {"is_vllm_available": lambda: False}, 'vLLM is not installed; `pip install "trl\\[vllm\\]"`'),
        ({}, {"trl.__version__": "1.10.0"}, "TRL 1.10.0 is installed and 1.11.0 or later is needed"),
        ({"vllm_tensor_parallel_size": 2}, {}, "`vllm_tensor_parallel_size` is 2, but the run has 1 processes"),
        ({"model": tiny.model}, {}, "the student was built in memory, and a colocated engine loads it"),
    ],
)
def test_what_vllm_cannot_be_used_with(trainer, vllm, monkeypatch, settings, changes, error):
    for name, value in changes.items():
        monkeypatch.setattr(f"trl_akd.akd.vllm_sampler.{name}", value)
    settings = {name: value() if callable(value) else value for name, value in settings.items()}
    with pytest.raises((ImportError, ValueError), match=error):
        trainer(**SETTINGS, use_vllm=True, **settings)
    assert not Engine.made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_vllm": 1}, "`use_vllm` is 1; give True or False"),
        ({"lmbda": 0.0}, "`use_vllm` is on, but the student generates no text; set lmbda above 0"),
        ({"lmbda": 0.0, "seq_kd": True}, "`use_vllm` is on, but the student generates no text"),
        ({"use_vllm": False, "vllm_mode": "server"}, "`vllm_mode` is 'server', which has no effect while `use_vllm`"),
        ({"use_vllm": False, "vllm_max_model_length": 9}, "`vllm_max_model_length` is 9, which has no effect"),
        ({"divergence": "minillm", "temperature": 1.0}, r"teacher_mix=0.2\), which vLLM cannot; set use_vllm=False"),
        ({"vllm_mode": "serve"}, "`vllm_mode` is 'serve'; choose 'colocate' or 'server'"),
        ({"vllm_model_impl": "torch"}, "`vllm_model_impl` is 'torch'; choose 'vllm' or 'transformers' or 'auto'"),
        ({"vllm_server_port": 8001}, "`vllm_server_port` is 8001, which has no effect with vllm_mode='colocate'"),
        ({"vllm_mode": "server", "vllm_enable_sleep_mode": True}, "has no effect with vllm_mode='server'"),
        ({"vllm_mode": "server", "vllm_gpu_memory_utilization": 0.5}, "has no effect with vllm_mode='server'"),
        ({"vllm_mode": "server", "vllm_server_base_url": "localhost:8000"}, "give a URL such as 'http://localhost"),
        ({"vllm_mode": "server", "vllm_server_base_url": "http://a", "vllm_server_port": 1}, "put it into the URL"),
        ({"vllm_mode": "server", "vllm_server_port": 70000}, "`vllm_server_port` is 70000; give a port"),
        ({"vllm_mode": "server", "vllm_group_port": 0}, "`vllm_group_port` is 0; give an integer of at least 1"),
        ({"vllm_mode": "server", "vllm_server_timeout": -1}, "`vllm_server_timeout` is -1; give a number of seconds"),
        ({"vllm_gpu_memory_utilization": 30}, "`vllm_gpu_memory_utilization` is 30; give a fraction above 0"),
        ({"vllm_tensor_parallel_size": 0}, "`vllm_tensor_parallel_size` is 0; give an integer of at least 1"),
        ({"vllm_max_model_length": 1.5}, "`vllm_max_model_length` is 1.5; give an integer"),
    ],
)
def test_bad_settings_are_named_with_a_remedy(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**{"lmbda": 1.0, "use_vllm": True, **settings})
