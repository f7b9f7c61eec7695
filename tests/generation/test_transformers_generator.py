"""Samples of the model's plain distribution, independent of batch, mode and generation config."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tokenizers import processors
from transformers import T5Config, T5ForConditionalGeneration

from tests import tiny
from tests.generation.test_decoding import sentencepiece
from trl_akd.data.encoding import encode_prompts
from trl_akd.generation import Completion, TransformersGenerator

PROMPTS = ["def add(a, b):\n", "x", "# größe\nprint(", "for i in range(10):\n    total += i * i\n", "x"]


def oracle(model: Any, tokens: list[int], steps: int, ends: set[int]) -> tuple[list[int], list[float]]:
    """Greedy decoding by full forward passes without padding or cache."""
    model.eval()
    written: list[int] = []
    logprobs: list[float] = []
    while len(written) < steps and not ends & set(written):
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                start = [model.config.decoder_start_token_id]
                inputs = {"input_ids": torch.tensor([tokens]), "decoder_input_ids": torch.tensor([start + written])}
            else:
                inputs = {"input_ids": torch.tensor([tokens + written])}
            logits = model(**inputs, use_cache=False).logits[0, -1].double()
        written.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1)[written[-1]]))
    return written, logprobs


def chain(text: str, end: int = 257) -> Any:
    """A model that generates `text`, then the token `end`: each character predicts the next one."""
    tokenizer, model = tiny.tokenizer(), tiny.model()
    tokens = [*tokenizer(text)["input_ids"], end]
    assert len(set(tokens)) == len(tokens)
    table = torch.zeros(tiny.VOCABULARY, tiny.VOCABULARY)
    table[tokens[:-1], tokens[1:]] = 20.0

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        output.logits = table[kwargs["input_ids"]]
        return output

    model.register_forward_hook(hook, with_kwargs=True)
    return model


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=tiny.VOCABULARY,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        pad_token_id=256,
        eos_token_id=257,
        decoder_start_token_id=256,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


@pytest.fixture
def generator() -> Callable[..., TransformersGenerator]:
    def make(model: Any = None, tokenizer: Any = None, **settings: Any) -> TransformersGenerator:
        return TransformersGenerator(model or tiny.model(), tokenizer or tiny.tokenizer(), **settings)

    return make


# Greedy decoding


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "codegen", "gpt_bigcode", "t5"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_greedy_is_the_plain_argmax_loop(generator, family: str, batch_size: int) -> None:
    model = tiny_t5() if family == "t5" else tiny.model(family)
    tokenizer = tiny.tokenizer()
    free, _ = oracle(model, tokenizer(PROMPTS[0])["input_ids"], 20, set())
    model.generation_config.eos_token_id = [free[6]]  # ends the first text, and not all others
    ends = {free[6], 257}
    outputs = generator(model, batch_size=batch_size).generate(PROMPTS, max_new_tokens=20)
    assert [len(completions) for completions in outputs] == [1] * len(PROMPTS)
    reasons = set()
    for prompt, [completion] in zip(PROMPTS, outputs, strict=True):
        tokens, logprobs = oracle(model, tokenizer(prompt)["input_ids"], 20, ends)
        ended = tokens[-1] in ends
        assert completion.num_tokens == len(tokens)
        assert completion.text == tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.mean_logprob == pytest.approx(np.mean(logprobs), abs=1e-4)
        reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"} or family == "t5"


@pytest.mark.parametrize("family", ["llama", "codegen", "gpt_bigcode"])
def test_each_position_is_computed_once(generator, family: str) -> None:
    model = tiny.model(family).train()
    model.generation_config.eos_token_id = None
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = model.generation_config.use_cache = False  # as trainers leave it
    positions = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    generator(model, tokenizer).generate(["abcdef"], max_new_tokens=10)
    assert positions == [6] + [1] * 9


# Where a text ends


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens", "reason"),
    [
        ([], "bcdefghij", 10, "stop"),
        (["ef"], "bcd", 5, "stop"),
        (["fg", "efgh"], "bcde", 6, "stop"),  # the one that is complete first, though the other begins before it
        (["b"], "", 1, "stop"),
        (["ab"], "bcdefghij", 10, "stop"),  # its `a` is the prompt's
        (["hij"], "bcdefg", 9, "stop"),
    ],
)
def test_stop_strings_across_tokens(generator, stop: list[str], text: str, num_tokens: int, reason: str) -> None:
    [[completion]] = generator(chain("abcdefghij")).generate(["a"], stop=stop, max_new_tokens=20)
    assert (completion.text, completion.num_tokens, completion.finish_reason) == (text, num_tokens, reason)
    assert completion.mean_logprob == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("padding", ["<pad>", "<|endoftext|>"])
def test_rows_of_a_batch_end_independently(generator, padding: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = padding
    outputs = generator(chain("abcdefghij"), tokenizer).generate(["e", "a", "i", "b"], stop=["gh"], max_new_tokens=6)
    found = [(completion.text, completion.finish_reason, completion.num_tokens) for [completion] in outputs]
    assert found == [("f", "stop", 3), ("bcdefg", "length", 6), ("j", "stop", 2), ("cdef", "stop", 6)]


def test_ends_of_model_and_tokenizer_both_count(generator) -> None:
    for end in (257, 300):
        model = chain("abc", end)
        model.generation_config.eos_token_id = 300
        [[completion]] = generator(model).generate(["a"], max_new_tokens=9)
        assert (completion.text, completion.finish_reason, completion.num_tokens) == ("bc", "stop", 3)


def test_model_and_tokenizer_without_any_end_or_padding_token(generator) -> None:
    tokenizer, model = tiny.tokenizer(), tiny.model()
    tokenizer.eos_token = tokenizer.pad_token = None
    assert tokenizer.eos_token_id is None
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    outputs = generator(model, tokenizer).generate(PROMPTS, max_new_tokens=5)
    assert [completion.num_tokens for [completion] in outputs] == [5] * 5


# Sampling


def texts(outputs: list[list[Completion]]) -> list[list[str]]:
    return [[completion.text for completion in completions] for completions in outputs]


SAMPLED = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 12, "seed": 7}


def test_samples_do_not_depend_on_their_neighbors(generator) -> None:
    model = tiny.model()
    together = texts(generator(model).generate(PROMPTS, n=3, **SAMPLED))
    assert together == texts(generator(model, batch_size=2).generate(PROMPTS, n=3, **SAMPLED))
    for prompt, expected in zip(PROMPTS[:4], together, strict=False):
        assert texts(generator(model).generate([prompt], n=3, **SAMPLED)) == [expected]


def test_samples_of_a_prompt_differ_also_where_it_is_given_twice(generator) -> None:
    made = generator()
    [six] = texts(made.generate(["x"], n=6, **SAMPLED))
    assert len(set(six)) == 6
    assert texts(made.generate(["x", "x"], n=3, **SAMPLED)) == [six[:3], six[3:]]


def test_seed(generator) -> None:
    made = generator()
    first = made.generate(["x"], **SAMPLED)
    assert made.generate(["x"], **SAMPLED) == first
    assert made.generate(["x"], **{**SAMPLED, "seed": 8}) != first
    assert made.generate(["x"], **{**SAMPLED, "seed": None}) != made.generate(["x"], **{**SAMPLED, "seed": None})


def test_samples_follow_the_models_distribution(generator) -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    model.generation_config.update(top_k=2, temperature=0.1)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("x")["input_ids"]])).logits[0, -1].double()
    expected = (logits / 0.5).softmax(-1)
    made = generator(model, batch_size=500)
    [completions] = made.generate(["x"], n=4000, temperature=0.5, max_new_tokens=1, seed=0)
    counts: dict[float, int] = {}
    for completion in completions:
        counts[completion.mean_logprob] = counts.get(completion.mean_logprob, 0) + 1
    logprobs = logits.log_softmax(-1)
    for token in expected.topk(8).indices.tolist():
        found = sum(count for key, count in counts.items() if key == pytest.approx(float(logprobs[token]), abs=1e-5))
        deviation = (4000 * expected[token] * (1 - expected[token])).sqrt()
        assert abs(found - 4000 * expected[token]) < 4 * deviation


def test_random_states_do_not_change(generator) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]

    made = generator()
    before = states()
    made.generate(["x"], n=2, **SAMPLED)
    made.generate(["x"], **{**SAMPLED, "seed": None})
    assert states() == before


# The model is left as it was found


def test_generation_config_is_ignored_and_not_changed(generator) -> None:
    model = tiny.model()
    expected = generator(model).generate(PROMPTS, max_new_tokens=12)
    habits = model.generation_config
    habits.update(repetition_penalty=3.0, no_repeat_ngram_size=1, min_new_tokens=12, suppress_tokens=[1, 2, 3])
    assert generator(model).generate(PROMPTS, max_new_tokens=12) == expected
    assert model.generation_config is habits
    assert habits.repetition_penalty == 3.0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_mode_and_checkpointing_are_restored(generator, monkeypatch, training: bool, fails: bool) -> None:
    model = tiny.model().train(training)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    before = [getattr(module, "_gradient_checkpointing_func", None) for module in model.modules()]
    habits, modes = model.generation_config, []

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        modes.append((self.training, torch.is_grad_enabled()))
        if fails:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    original = type(model).generate
    monkeypatch.setattr(type(model), "generate", spy)
    try:
        generator(model).generate(["x"], max_new_tokens=2)
    except KeyboardInterrupt:
        assert fails
    assert modes == [(False, False)]
    assert model.training is training
    assert model.is_gradient_checkpointing
    assert model.generation_config is habits
    assert [getattr(module, "_gradient_checkpointing_func", None) for module in model.modules()] == before


def test_tokenizer_does_not_change(generator) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "right"
    generator(tokenizer=tokenizer).generate(PROMPTS, max_new_tokens=2)
    assert tokenizer.padding_side == "right"


# What the model is given


def test_prompts_are_tokenized_as_in_training(generator, monkeypatch) -> None:
    tokenizer = sentencepiece()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=None, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    model, given = tiny.model(), []
    original = type(model).generate

    def spy(self: Any, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        given.extend(row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True))
        return original(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    opening, x = tokenizer.convert_tokens_to_ids(["▁x", "x"])
    generator(model, tokenizer).generate(["xxx", "x", "<s>x", ""], max_new_tokens=1)
    assert given[0] == [1, opening, x, x]
    assert given[1][:1] == given[2][:1] == given[3] == [1], "BOS once, and no EOS"
    assert given[1:3] == encode_prompts(tokenizer, ["x", "<s>x"])
    given.clear()
    generator(model, tokenizer, add_special_tokens=False).generate(["x"], max_new_tokens=1)
    assert given == [[opening]]


def test_longest_prompts_come_first_and_batches_are_limited(generator, monkeypatch) -> None:
    model, shapes = tiny.model(), []
    original = type(model).generate

    def spy(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return original(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    generator(model, batch_size=3).generate(["aa", "a" * 9, "aaaa"], n=2, **SAMPLED)
    assert shapes == [(3, 9), (3, 4)]


# Bad input


def test_prompt_without_tokens(generator) -> None:
    with pytest.raises(ValueError, match=r"`prompts\[1\]` is empty and the tokenizer has no BOS"):
        generator().generate(["x", ""], max_new_tokens=2)


def test_prompt_too_long_for_the_model(generator) -> None:
    prompts = ["x", "a" * 240]
    generator().generate(prompts, max_new_tokens=16)
    with pytest.raises(ValueError, match=r"`prompts\[1\]` has 240 tokens, .*max_new_tokens=17 exceeds the 256 pos"):
        generator().generate(prompts, max_new_tokens=17)


def test_no_prompts(generator) -> None:
    assert generator().generate([]) == []


def test_batch_size(generator) -> None:
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        generator(batch_size=0)


def test_diverged_model_is_named(generator) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    for sampling in ({}, SAMPLED):
        with pytest.raises(ValueError, match=r"logits for `prompts\[0\]` are NaN"):
            generator(model).generate(["x"], **{"max_new_tokens": 3, **sampling})


def test_insufficient_memory(generator, monkeypatch, caplog) -> None:
    model, sizes, limit = tiny.model(), [], 3
    expected = generator(model).generate(PROMPTS, n=2, **SAMPLED)
    original = type(model).generate

    def spy(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    assert texts(generator(model).generate(PROMPTS, n=2, **SAMPLED)) == texts(expected)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert "continuing with 2 at a time" in caplog.text
    limit = 0
    with pytest.raises(torch.OutOfMemoryError, match=r"does not suffice for `prompts\[3\]`, of 39 tokens"):
        generator(model).generate(PROMPTS, max_new_tokens=3)


# Around a model


def test_peft_model(generator) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tiny.model(), config)
    habits = model.get_base_model().generation_config
    habits.repetition_penalty = 3.0
    tokens, _ = oracle(model, tiny.tokenizer()("x")["input_ids"], 8, {257})
    [[completion]] = generator(model).generate(["x"], max_new_tokens=8)
    assert completion.text == tiny.tokenizer().decode(tokens, skip_special_tokens=True)
    assert model.get_base_model().generation_config is habits


def test_accelerator_of_one_process(generator) -> None:
    AcceleratorState._reset_state()  # a test before may have used half precision
    model, accelerator = tiny.model(), Accelerator(cpu=True, mixed_precision="no")
    expected = generator(model).generate(PROMPTS, n=2, **SAMPLED)
    prepared = accelerator.prepare(model)
    assert generator(prepared, accelerator=accelerator).generate(PROMPTS, n=2, **SAMPLED) == expected
