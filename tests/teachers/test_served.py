"""A teacher behind a server, which is a stand-in for vLLM with a tiny model."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.generation.server import Fault, Server, serving
from trl_akd.cli.mock_teacher import score
from trl_akd.generation import GenerationError
from trl_akd.losses import LMHead, SparseSignal, divergences, fused_divergence
from trl_akd.teachers import ServedTeacher, Teacher

TEXTS = ([40, 7, 99, 3, 250], [5, 6], [17, 18, 19, 20, 21, 22, 23])
MODEL = tiny.model("qwen2", hidden=48, seed=2).eval()
TOKENIZER = tiny.tokenizer()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.answer = lambda path, body: score(MODEL, TOKENIZER, body)  # type: ignore[method-assign]
        yield server


def connect(server: Server, **options: Any) -> ServedTeacher:
    given = {"vocabulary_size": tiny.VOCABULARY, "top_k": 5, "tokenizer": TOKENIZER, "backoff": 0.0, "max_retries": 3}
    return ServedTeacher(server.url, "teacher", **{**given, **options})


def batch(texts: Any = TEXTS) -> dict[str, torch.Tensor]:
    width = max(map(len, texts))
    return {
        "input_ids": torch.tensor([text + [256] * (width - len(text)) for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts]),
    }


def signal_of(teacher: ServedTeacher, inputs: dict[str, torch.Tensor]) -> SparseSignal:
    teacher.forward(inputs)
    return teacher.signal(None)


def logits_of(text: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return MODEL(input_ids=torch.tensor([text])).logits[0]


def outcomes(signal: SparseSignal, row: int, place: int) -> dict[int, float]:
    pairs = zip(signal.ids[row, place].tolist(), signal.log_probs[row, place].tolist(), strict=True)
    return {token: value for token, value in pairs if token >= 0}


@pytest.mark.parametrize("k", [1, 5, 20, tiny.VOCABULARY - 1, tiny.VOCABULARY])
def test_equals_the_signal_of_the_same_model(server, k):
    teacher = connect(server, top_k=k)
    signal = signal_of(teacher, batch())
    assert isinstance(teacher, Teacher)
    assert signal.temperature == 1.0
    for row, text in enumerate(TEXTS):
        expected = SparseSignal.from_logits(logits_of(text), k)
        full = logits_of(text).log_softmax(-1)
        for place, label in enumerate(text[1:]):
            found = outcomes(signal, row, place)
            own = dict(zip(expected.ids[place].tolist(), expected.log_probs[place].tolist(), strict=True))
            assert found == pytest.approx(own | {label: full[place, label].item()}, rel=1e-6)
            rest = max(1e-6, 1.0 - math.fsum(map(math.exp, found.values())))
            tail = signal.tail_log_prob[row, place].item()
            assert math.exp(tail) == pytest.approx(0.0 if len(found) == tiny.VOCABULARY else rest, abs=1e-6)
            if label in own:
                assert math.exp(tail) == pytest.approx(expected.tail_log_prob[place].exp().item(), abs=2e-6)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_kl"])
def test_divergences_are_lower_bounds_that_grow_to_the_exact_one(server, name):
    text = TEXTS[2]
    generator = torch.Generator().manual_seed(0)
    teacher = logits_of(text)[:-1].double()
    student = 2 * torch.randn(teacher.shape, generator=generator, dtype=torch.float64)
    exact = divergences.get(name)(student.log_softmax(-1), teacher.log_softmax(-1))
    identity, before = LMHead(torch.eye(tiny.VOCABULARY, dtype=torch.float64)), torch.zeros(())
    for k in (1, 4, 16, 64, tiny.VOCABULARY):
        signal = signal_of(connect(server, top_k=k), batch([text]))[0, :-1]
        found = fused_divergence(student, identity, signal, token_weights=torch.ones(len(teacher)), divergence=name)
        assert (found.divergence <= exact + 1e-5).all()
        assert (found.divergence >= before - 1e-5).all()
        before = found.divergence
    torch.testing.assert_close(before, exact, rtol=1e-5, atol=1e-5)


def test_packed_samples_and_padding_are_separate_texts(server):
    flat = {
        "input_ids": torch.tensor([[token for text in TEXTS for token in text] + [256, 256]]),
        "position_ids": torch.tensor([[place for text in TEXTS for place in range(len(text))] + [0, 0]]),
    }
    packed, padded = signal_of(connect(server), flat), signal_of(connect(server), batch())
    start = 0
    for row, text in enumerate(TEXTS):
        for place in range(len(text) - 1):
            assert outcomes(packed, 0, start + place) == outcomes(padded, row, place)
        start += len(text)
    prompts = sorted(body["prompt"] for body in server.bodies)
    assert prompts == sorted([*TEXTS, *TEXTS])


def test_left_padding(server):
    inputs = {"input_ids": torch.tensor([[0, 0, *TEXTS[0]]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]])}
    signal, expected = signal_of(connect(server), inputs), signal_of(connect(server), batch(TEXTS[:1]))
    torch.testing.assert_close(signal.log_probs[:, 2:], expected.log_probs)


def test_requests_are_concurrent_in_order_and_not_repeated(server):
    server.pause = 0.05
    texts = [[1, 2, 3 + number % 6] for number in range(12)]
    teacher = connect(server, concurrency=3)
    signal = signal_of(teacher, batch(texts))
    assert server.most_under_way == 3
    assert (teacher.requests, teacher.tokens) == (6, 18)
    for row, text in enumerate(texts):
        assert outcomes(signal, row, 1)[text[2]] == pytest.approx(logits_of(text).log_softmax(-1)[1, text[2]].item())
    assert {body["model"] for body in server.bodies} == {"teacher"}
    assert {body["prompt_logprobs"] for body in server.bodies} == {5}


def test_tokens_that_the_student_lacks_count_in_the_tail(server):
    signal = signal_of(connect(server, vocabulary_size=100, top_k=30), batch([[40, 7, 99, 3]]))
    for place, label in enumerate([7, 99, 3]):
        found = outcomes(signal, 0, place)
        assert label in found
        assert max(found) < 100
        assert len(found) < 31
        assert math.exp(signal.tail_log_prob[0, place]) == pytest.approx(
            1 - sum(map(math.exp, found.values())), abs=1e-6
        )


def change(position: int, **entries: Any) -> Callable[[dict], None]:
    """Replace entries of a position: by number from the most probable, or `own`, the token of the text."""

    def apply(choice: dict) -> None:
        found = choice["prompt_logprobs"][position]
        order = sorted(found, key=lambda token: found[token]["rank"])
        for key, value in entries.items():
            token = str(choice["prompt_token_ids"][position]) if key == "own" else order[int(key[1:])]
            if value is None:
                del found[token]
            else:
                found[token]["logprob"] = value

    return apply


def test_impossible_tokens_count_in_the_tail(server):
    """vLLM writes the logarithm of 0 as -9999."""
    text = next(t for t in ([40, n, 9] for n in range(256)) if n_outside(t))
    spoil(server, change(1, own=-9999.0))
    found = outcomes(signal_of(connect(server), batch([text])), 0, 0)
    assert text[1] not in found
    assert len(found) == 5


def n_outside(text: list[int]) -> bool:
    return text[1] not in logits_of(text)[0].topk(5).indices.tolist()


def spoil(server: Server, *changes: Callable[[dict], None]) -> None:
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        found = score(MODEL, TOKENIZER, body)
        for each in changes:
            each(found["choices"][0])
        return found

    server.answer = answer  # type: ignore[method-assign]


def truncate(choice: dict) -> None:
    choice["prompt_logprobs"].pop()


def other_ids(choice: dict) -> None:
    choice["prompt_token_ids"][0] += 1


def other_texts(choice: dict) -> None:
    for position in choice["prompt_logprobs"][1:]:
        for entry in position.values():
            entry["decoded_token"] += "x"


def keep_three(choice: dict) -> None:
    for place, position in enumerate(choice["prompt_logprobs"][1:], start=1):
        own = str(choice["prompt_token_ids"][place])
        kept = [own, *[token for token in position if token != own][:2]]
        choice["prompt_logprobs"][place] = {token: position[token] for token in kept}


@pytest.mark.parametrize(
    ("spoiler", "complaint"),
    [
        (lambda choice: choice.pop("prompt_logprobs"), r"row 0 of a batch without `prompt_logprobs`; serve .* vLLM"),
        (truncate, r"row 0 of a batch with 4 tokens in place of its 5; serve the model without truncation"),
        (other_ids, r"row 0 of a batch with 5 tokens in place of its 5"),
        (other_texts, r"row 0 of a batch in which token id 7 is '.x', but '.' for the student; serve a teacher with"),
        (keep_three, r"row 0 .* with 3 log-probabilities of token 1 in place of 5; lower `top_k`"),
        (
            lambda choice: choice["prompt_logprobs"].__setitem__(2, None),
            r"with 0 log-probabilities of token 2 .* `--no-enable-prefix-caching`",
        ),
        (change(1, own=None, _0=-0.5), r"(without the log-probability of token 1, whose id is 7|in place of 5)"),
        (
            change(2, _0=0.4),
            r"probabilities of token 2 that sum to \d.*; start .* `--logprobs-mode raw_logprobs`",
        ),
        (change(2, _0=7.5), r"with probabilities of token 2 that sum to"),
        (change(2, _0=math.nan), r"with probabilities of token 2 that sum to nan"),
        (change(3, _0=math.inf), r"with probabilities of token 3 that sum to"),
        (
            lambda choice: choice.__setitem__("prompt_logprobs", [None, {"a": 1}]),
            r"gave no valid response in 4 attempts.*malformed",
        ),
        (lambda choice: choice.__setitem__("prompt_logprobs", 3), r"no valid response in 4 attempts.*malformed"),
    ],
)
def test_unusable_responses(server, spoiler, complaint):
    spoil(server, spoiler)
    with pytest.raises(GenerationError, match=complaint) as caught:
        connect(server, top_k=5).forward(batch())
    assert str(caught.value).count(". ") == 0


def test_rounding_is_accepted(server):
    """Log-probabilities that are rounded to three digits sum to slightly more or less than 1."""

    def round_off(choice: dict) -> None:
        for position in choice["prompt_logprobs"][1:]:
            for entry in position.values():
                entry["logprob"] = round(entry["logprob"], 4)

    spoil(server, round_off)
    signal = signal_of(connect(server, top_k=tiny.VOCABULARY - 1), batch())
    assert signal.tail_log_prob[0, 0] >= math.log(1e-6) - 1e-6


VLLM_LENGTH = (
    "This model's maximum context length is 4 tokens. However, you requested 6 tokens (5 in the prompt, 1 for the "
    "completion). Please reduce the length of the input prompt."
)
# Messages of vLLM 0.32.0.
VLLM_TOP_K = (
    "Requested prompt logprobs of 5, which is greater than max allowed: 3 (parameter=prompt_logprobs, value=5)"
)
VLLM_EXACT_LENGTH = "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"
VLLM_LONG = (
    "This model's maximum context length is 4 tokens. However, your prompt contains 5 input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt."
)


@pytest.mark.parametrize(
    ("status", "message", "complaint"),
    [
        (
            400,
            VLLM_LENGTH,
            r"has 5 tokens, so start the server with `--max-model-len 6` or more, or lower `max_length`",
        ),
        (400, VLLM_EXACT_LENGTH, r"has 5 tokens, so start the server with `--max-model-len 6` or more, or lower"),
        (400, VLLM_LONG, r"has 5 tokens, so start the server with `--max-model-len 6` or more, or lower `max_length`"),
        (400, VLLM_TOP_K, r"greater than max allowed: 3.*`--max-logprobs 5`, or lower `top_k`\.$"),
        (400, "Token id 250 is out of vocabulary", r"serve a teacher with the student's tokenizer\.$"),
        (400, "unknown field prompt_logprobs", r"`--max-logprobs 5`, or lower `top_k`\.$"),
        (
            400,
            "prompt must be a string",
            r"refused row 0 of a batch with status 400.*; check `model`, and that",
        ),
        (401, "Unauthorized: sk-secret", r"refused with status 401: .*\*\*\*.*; check `api_key`"),
        (
            404,
            "The model `teacher` does not exist.",
            r"404.*check `base_url`, which usually ends in /v1",
        ),
    ],
)
def test_refusals(server, status, message, complaint):
    server.refuses = lambda body: Fault(status, json.dumps({"error": {"message": message}}))
    with pytest.raises(GenerationError, match=complaint) as caught:
        connect(server, api_key="sk-secret").forward(batch(TEXTS[:1]))
    assert "sk-secret" not in str(caught.value)
    assert len(server.bodies) == 1


def test_transient_failures_are_retried(server):
    server.faults.extend(
        [
            Fault(429, headers={"Retry-After": "0"}),
            Fault(503, "loading"),
            Fault(200, "not JSON"),
            Fault(200, hang_up=True),
            Fault(200, '{"error": "busy"}'),
        ]
    )
    teacher = connect(server, max_retries=5, concurrency=1, api_key="sk-secret")
    signal = signal_of(teacher, batch(TEXTS[:2]))
    torch.testing.assert_close(signal.log_probs, signal_of(connect(server), batch(TEXTS[:2])).log_probs)
    assert teacher.requests == 7
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"


def test_an_error_ends_the_retries_of_other_texts(server):
    server.refuses = lambda body: Fault(503 if body["prompt"] == TEXTS[0] else 400, "no such model")
    with pytest.raises(GenerationError, match=r"refused row 1 of a batch with status 400.*no such model"):
        connect(server, backoff=20.0, max_retries=1).forward(batch(TEXTS[:2]))
    assert [body["prompt"] for body in server.bodies].count(TEXTS[0]) <= 1


def test_slow_responses_time_out(server):
    server.refuses = lambda body: Fault(delay=0.5)
    with pytest.raises(GenerationError, match=r"in 2 attempts.*no response arrived within 0\.1 s.*or `timeout`"):
        connect(server, timeout=0.1, max_retries=1).forward(batch(TEXTS[:1]))


def test_minutes_of_429(server):
    server.refuses = lambda body: Fault(429, headers={"Retry-After": "3600"})
    with pytest.raises(GenerationError, match="asks to retry after 3600 s, which is too long to wait"):
        connect(server).forward(batch(TEXTS[:1]))


def test_a_server_that_is_not_there_is_found_by_the_check():
    with serving() as gone:
        teacher = connect(gone, max_retries=50)
    with pytest.raises(GenerationError, match=r"no valid response in 4 attempts.*check that the server runs"):
        teacher.check([1, 2, 3])


@pytest.mark.parametrize(
    ("limits", "complaint", "requests"),
    [({"max_requests": 2}, "`max_requests` is reached", 2), ({"max_tokens": 7}, "`max_tokens` is reached", 2)],
)
def test_limits(server, limits, complaint, requests):
    teacher = connect(server, **limits)
    with pytest.raises(GenerationError, match=complaint + ".*resume_from_checkpoint"):
        teacher.forward(batch())
    assert len(server.bodies) == requests


def test_usage_of_requests_in_progress_is_recorded_when_a_limit_is_reached(server, tmp_path):
    server.refuses = lambda body: time.sleep(0.3)
    teacher = connect(server, max_requests=2, concurrency=2, usage_file=tmp_path / "usage.json")
    with pytest.raises(GenerationError, match="`max_requests` is reached"):
        teacher.forward(batch())
    used = {"requests": 2, "tokens": len(TEXTS[0]) + len(TEXTS[1])}
    assert json.loads((tmp_path / "usage.json").read_text()) == used


def test_no_text_is_sent_after_a_refusal(server):
    """The first text reserves the whole budget, so that the second one waits for its end."""
    server.refuses = lambda body: Fault(401)
    with pytest.raises(GenerationError, match="401"):
        connect(server, max_tokens=5).forward(batch())
    assert len(server.bodies) == 1


def test_reservations_are_released_when_no_thread_settles_them(server, monkeypatch):
    def fail(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    teacher = connect(server, max_requests=1)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't start"):
        patch.setattr("threading.Thread.start", fail)
        teacher.forward(batch(TEXTS[:1]))
    teacher.forward(batch(TEXTS[:1]))


def test_retries_count_against_the_limit(server):
    server.refuses = lambda body: Fault(503)
    with pytest.raises(GenerationError, match="`max_requests` is reached"):
        connect(server, max_requests=2, max_retries=9).forward(batch(TEXTS[:1]))
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"top_k": 0}, "`top_k` is 0; give a number between 1 and the 320 tokens"),
        ({"top_k": 321}, "`top_k` is 321; give a number between 1 and the 320 tokens"),
        ({"concurrency": 0}, "`concurrency` is 0"),
        ({"timeout": 0.0}, "`timeout` is 0.0"),
        ({"max_retries": -1}, "`max_retries` is -1"),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"top_k": 0, "names": {"top_k": "teacher_top_k"}}, "`teacher_top_k` is 0"),
    ],
)
def test_invalid_arguments(server, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        connect(server, **options)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://user:password@host/v1"])
def test_invalid_addresses(url):
    with pytest.raises(ValueError, match="`teacher_base_url`") as caught:
        ServedTeacher(url, "teacher", vocabulary_size=9, top_k=1, names={"base_url": "teacher_base_url"})
    assert "password@" not in str(caught.value)


def test_an_encoder_decoder(server):
    with pytest.raises(ValueError, match=r"`base_url` is set.*encoder-decoder"):
        connect(server).forward(batch() | {"decoder_input_ids": torch.ones(3, 2)})


def structure(value: Any) -> Any:
    """Return the types of JSON values; an object with numbers as keys counts as one of its values."""
    if isinstance(value, dict) and all(key.isdigit() for key in value):
        return [structure(next(iter(value.values())))]
    if isinstance(value, dict):
        return {key: structure(each) for key, each in value.items()}
    return [structure(value[-1])] if isinstance(value, list) else type(value)


def test_the_stand_in_answers_like_vllm():
    """The response of vLLM 0.32.0 on a CPU to the same request, except for fields that are null there."""
    recorded = json.loads((Path(__file__).parent / "vllm_response.json").read_text())
    request = {"model": "teacher", "prompt": [40, 7, 99], "prompt_logprobs": 2, "return_token_ids": True}
    found = score(MODEL, TOKENIZER, request)
    expected = structure(recorded)["choices"][0]
    assert structure(found)["choices"][0] == {key: expected[key] for key in found["choices"][0]}
    assert all(value is None for key, value in recorded["choices"][0].items() if key not in found["choices"][0])
    assert all(value is None for key, value in recorded.items() if key not in found and key != "system_fingerprint")
    for position in (recorded["choices"][0]["prompt_logprobs"], found["choices"][0]["prompt_logprobs"]):
        assert position[0] is None
        assert [list(entries)[0] for entries in position[1:]] == ["7", "99"]  # noqa: RUF015


def test_the_signal_of_a_response_of_vllm(server):
    server.answer = lambda path, body: json.loads((Path(__file__).parent / "vllm_response.json").read_text())
    signal = signal_of(connect(server, top_k=2), batch([[40, 7, 99]]))
    assert outcomes(signal, 0, 0) == pytest.approx({206: -2.8224192, 257: -2.9399424, 7: -6.4878244})
    assert outcomes(signal, 0, 1) == pytest.approx({273: -2.2260702, 101: -2.637604, 99: -6.1448693})


def test_the_signal_is_used_once(server):
    teacher = connect(server)
    signal_of(teacher, batch())
    with pytest.raises(RuntimeError, match="call `forward` before"):
        teacher.signal(None)
