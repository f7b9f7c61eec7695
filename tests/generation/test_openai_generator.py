"""Generation with a correct server and with faulty ones."""

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.generation.server import Fault, Server, serving
from trl_akd.generation import Completion, GenerationError, OpenAIGenerator
from trl_akd.generation.protocol import SamplingParams, Usage

KEY = "sk-secret-123"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def generator(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenAIGenerator]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(**settings: Any) -> OpenAIGenerator:
        return OpenAIGenerator(server.url, "tiny", **{"backoff": 0.01, "timeout": 5.0, **settings})

    return make


# What is sent and what comes back


@pytest.mark.parametrize("given", [0, 3, 4, 5, 8])
def test_at_most_four_stop_strings_are_sent(
    server: Server, generator: Callable[..., OpenAIGenerator], given: int
) -> None:
    server.finish_reason = "length"
    stops = list("LKJIHGFE")[:given]
    [[completion]] = generator().generate(["abcdefghijkl"], stop=stops)
    assert server.bodies[0].get("stop", []) == stops[:4]
    assert completion.text == "ABCDEFGHIJKL"[: 12 - given]
    assert completion.finish_reason == ("stop" if given else "length")


@pytest.mark.parametrize("chat", [False, True])
def test_greedy(server: Server, generator: Callable[..., OpenAIGenerator], chat: bool) -> None:
    made = generator(chat=chat)
    outputs = made.generate(["a", "b"], max_new_tokens=7, stop=["\n"])
    assert outputs == [[Completion("A", -2.0, "stop", 3)], [Completion("B", -2.0, "stop", 3)]]
    question = {"messages": [{"role": "user", "content": "a"}]} if chat else {"prompt": "a"}
    logprobs = {"logprobs": True} if chat else {"logprobs": 1}
    assert {
        "model": "tiny",
        "temperature": 0.0,
        "max_tokens": 7,
        "stop": ["\n"],
        **logprobs,
        **question,
    } in server.bodies
    assert (made.requests, made.tokens) == (2, 16)
    assert "Authorization" not in server.headers[0]


def test_samples(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    made = generator()
    sampled: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "seed": 3}
    outputs = made.generate(["a", "a"], n=3, **sampled)
    assert [len(completions) for completions in outputs] == [3, 3]
    assert len({completion.text for completions in outputs for completion in completions}) == 6
    assert {(body["n"], body["top_p"], body["temperature"]) for body in server.bodies} == {(3, 0.9, 0.5)}
    assert len({body["seed"] for body in server.bodies}) == 2
    assert made.generate(["b", "a", "a"], n=3, **sampled)[1:] == outputs
    assert all(completion.num_tokens == 3 for completion in outputs[0])


def test_server_that_gives_fewer_choices(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.choices = 2
    made = generator()
    [completions] = made.generate(["a"], n=5, temperature=1.0, seed=0)
    assert len({completion.text for completion in completions}) == len(completions) == 5
    assert [body["n"] for body in server.bodies] == [5, 3, 1]
    assert made.requests == 3


def test_order_and_concurrency(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.pause = 0.05
    prompts = [f"p{number}" for number in range(12)]
    outputs = generator(concurrency=3).generate(prompts)
    assert [completion.text for [completion] in outputs] == [prompt.upper() for prompt in prompts]
    assert server.most_under_way == 3


def test_truncation_by_server_and_stop_strings(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.finish_reason = "length"
    assert generator().generate(["abc"]) == [[Completion("ABC", -2.0, "length", 3)]]
    assert generator().generate(["abc"], stop=["C", "B"]) == [[Completion("A", None, "stop", 3)]]


def test_server_without_log_probabilities(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.logprobs = False
    assert generator().generate(["a"]) == [[Completion("A", None, "stop", 3)]]
    [several] = generator().generate(["a"], n=2, temperature=1.0)
    assert [completion.num_tokens for completion in several] == [None, None]


def test_server_that_refuses_log_probabilities(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.faults.append(Fault(422, '{"detail": "Unexpected fields in the request: {\'logprobs\'}"}'))
    made = generator(concurrency=1)
    assert made.generate(["a", "b"])[0] == [Completion("A", None, "stop", 3)]
    assert ["logprobs" in body for body in server.bodies] == [True, False, False]


def test_extra_fields(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    generator(extra_body={"top_k": 5, "max_tokens": None, "max_completion_tokens": 9}).generate(["a"])
    assert server.bodies[0]["top_k"] == 5
    assert "max_tokens" not in server.bodies[0]


def test_key(server: Server, generator: Callable[..., OpenAIGenerator], monkeypatch: pytest.MonkeyPatch) -> None:
    generator(api_key=KEY + "\n").generate(["a"])
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    generator().generate(["a"])
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}", "Bearer from-environment"]


# A server that misbehaves

GARBAGE = [
    "<html>busy</html>",
    "[]",
    "{}",
    '{"choices": []}',
    '{"choices": [{}]}',
    '{"choices": [{"text": null}]}',
    '{"choices": "text"}',
    '{"choices": [{"message": null}]}',
    '{"choices": [{"text": "a", "logprobs": {"token_logprobs": ["x"]}}]}',
    '{"choices": [{"text": "a"}], "usage": []}x',
    "",
]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, "slow down"),
        Fault(500, "oops"),
        Fault(503),
        Fault(200, '{"choices"', hang_up=True),
        *(Fault(200, garbage) for garbage in GARBAGE),
        pytest.param(Fault(200, "[" * 100_000), id="nested"),
    ],
    ids=lambda fault: f"{fault.status} {fault.body}",
)
def test_temporary_faults_are_retried(server: Server, generator: Callable[..., OpenAIGenerator], fault: Fault) -> None:
    server.faults.extend([fault] * 3)
    made = generator(max_retries=3)
    assert made.generate(["a"])[0][0].text == "A"
    assert made.requests == 4


@pytest.mark.parametrize("fault", [Fault(429, "busy"), Fault(200, "<html>")], ids=["429", "garbage"])
def test_errors_of_permanent_faults(server: Server, generator: Callable[..., OpenAIGenerator], fault: Fault) -> None:
    server.faults.extend([fault] * 9)
    with pytest.raises(
        GenerationError, match=rf"no valid response in 3 attempts, .*{fault.body}.*raise `max_retries`"
    ):
        generator(max_retries=2).generate(["a"])
    assert len(server.bodies) == 3


def test_slow_server(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.faults.append(Fault(delay=1.0))
    assert generator(timeout=0.2).generate(["a"])[0][0].text == "A"
    server.faults.extend([Fault(delay=1.0)] * 2)
    with pytest.raises(GenerationError, match=r"because no response arrived within 0\.2 s"):
        generator(timeout=0.2, max_retries=1).generate(["a"])


@pytest.mark.parametrize("drip", ["body", "headers"])
def test_server_that_sends_single_bytes(drip: str, generator: Callable[..., OpenAIGenerator], server: Server) -> None:
    if drip == "body":
        server.faults.append(Fault(body=json.dumps(server.answer("", {"prompt": "a", "temperature": 0})), drip=0.05))
        url = server.url
        assert generator(timeout=0.5).generate(["a"])[0][0].text == "A", "the second attempt is a quick one"
        assert len(server.bodies) == 2
        server.faults.extend([Fault(body="x" * 100, drip=0.05)] * 2)
    with dripping_headers() if drip == "headers" else nullcontext(server.url) as url:
        began = time.monotonic()
        with pytest.raises(GenerationError, match=r"2 attempts, .* because no response arrived within 0\.5 s"):
            OpenAIGenerator(url, "tiny", timeout=0.5, max_retries=1, backoff=0.0).generate(["a"])
        assert time.monotonic() - began >= 1.0


@contextmanager
def dripping_headers() -> Iterator[str]:
    """Serve responses whose status line and headers arrive byte by byte, for five seconds."""

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Long: yes\r\n" * 7:
                connection.send(bytes([byte]))
                time.sleep(0.05)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_back_off_grows(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.faults.extend([Fault(500)] * 3)
    generator(backoff=0.1).generate(["a"])
    pauses = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, [0.05, 0.1, 0.2], strict=True))


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_honoured(server: Server, generator: Callable[..., OpenAIGenerator], dated: bool) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.faults.append(Fault(429, headers={"Retry-After": date if dated else "0.5"}))
    began = time.time()
    generator(backoff=0.0).generate(["a"])
    assert time.time() - began > (0.9 if dated else 0.5)  # a date has no fractions of a second


def test_retry_after_hours_is_an_error(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.faults.append(Fault(429, headers={"Retry-After": "7200"}))
    with pytest.raises(GenerationError, match="asks to retry after 7200 s"):
        generator().generate(["a"])


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (402, "the request"),
        (401, "check `api_key`"),
        (403, "api_key"),
        (404, "/v1, and the model's name"),
        (302, "`base_url`"),
    ],
)
def test_refusals_end_at_once(
    server: Server, generator: Callable[..., OpenAIGenerator], status: int, remedy: str
) -> None:
    server.faults.append(Fault(status, json.dumps({"error": f"no: {KEY}"})))
    made = generator(api_key=KEY, max_retries=5)
    with pytest.raises(GenerationError, match=rf"refused with status {status}.*{remedy}") as caught:
        made.generate(["a"])
    assert made.requests == 1
    assert KEY not in str(caught.value)
    assert KEY not in repr(vars(made))


def test_finished_answers_are_kept(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.choices = 1
    made = generator(concurrency=1)
    made.generate(["a"])
    server.faults.extend([Fault(body=json.dumps(server.answer("/v1/completions", server.bodies[0])))] * 3)
    server.faults.append(Fault(403))
    paid = []
    with pytest.raises(GenerationError, match="status 403"):
        for index, completions in made.stream(["a", "b", "c"], SamplingParams(2, 1.0)):
            paid.append((index, len(completions)))
    assert paid[:3] == [(0, 1), (0, 1), (1, 1)] and len(paid) == len(server.bodies) - 2


def test_unreachable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(GenerationError, match=r"2 attempts.*ConnectionError.*check that the server runs"):
        OpenAIGenerator(f"http://127.0.0.1:{port}/v1", "m", max_retries=1, backoff=0.0).generate(["a"])


# A prompt that is refused


def refusing(*prompts: str, status: int = 400, body: str = "no") -> Callable[[dict[str, Any]], Any]:
    """Refuse the given prompts, or all if none are given."""

    def refuses(sent: dict[str, Any]) -> Fault | None:
        prompt = sent["prompt"] if "prompt" in sent else sent["messages"][0]["content"]
        return Fault(status, body) if prompt in prompts or not prompts else None

    return refuses


EXPLAINED = [
    (400, '{"error": {"code": "content_filter", "message": "The response was filtered"}}'),
    (400, '{"error": {"code": "context_length_exceeded"}}'),
    (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
    (413, "Payload Too Large"),
    (422, '{"detail": "flagged by moderation"}'),
    (400, "Invalid input: flagged as unsafe by the safety policy"),
    (400, '{"error": {"type": "invalid_request_error", "param": "messages", "message": "Input is too long"}}'),
    (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy."),
]


@pytest.mark.parametrize(("status", "body"), [*EXPLAINED, (400, "bad prompt"), (422, "unprocessable")])
@pytest.mark.parametrize("chat", [False, True])
def test_only_the_refused_prompt_fails(
    server: Server, generator: Callable[..., OpenAIGenerator], status: int, body: str, chat: bool
) -> None:
    server.refuses = refusing("b", status=status, body=body)
    made = generator(chat=chat)
    for prompts in (["a", "b", "c"], ["b", "a"], ["a", "b"]):
        found = dict(zip(prompts, made.generate(prompts, n=2, temperature=1.0), strict=True))
        assert [completion.finish_reason for completion in found["b"]] == ["refused"] * 2
        assert found["b"][0].text == "" and found["b"][0].num_tokens is None
        assert f"status {status}" in found["b"][0].refusal and body[-9:] in found["b"][0].refusal
        assert all(
            completion.finish_reason == "stop" for prompt in found if prompt != "b" for completion in found[prompt]
        )
    assert made.generate(["b"])[0][0].finish_reason == "refused", "alone, too"


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_unexplained_refusals_in_a_row_end_the_call(
    server: Server, generator: Callable[..., OpenAIGenerator], concurrency: int
) -> None:
    server.refuses = refusing(body="Unknown argument 'top_k'")
    made, arrived = generator(concurrency=concurrency), []
    with pytest.raises(
        GenerationError, match=r"^8 consecutive prompts were refused, .* status 400: .*top_k.*max_refusals"
    ):
        arrived.extend(made.stream([str(number) for number in range(40)]))
    assert not arrived, "what may be wrong with the request is not blamed on prompts"
    assert 8 <= len(server.bodies) <= 7 + concurrency


@pytest.mark.parametrize(
    "body",
    [
        "max_tokens is too large: 100000. This model supports at most 4096 completion tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum context length is 8 tokens.",
        '{"error": {"message": "Unrecognized request argument supplied: safety_settings"}}',
        '{"detail": [{"type": "extra_forbidden", "msg": "Extra inputs are not permitted", "loc": "moderation"}]}',
        "Unknown field: content_filter_level",
        "Unsupported parameter: 'service_policy'",
    ],
)
def test_refused_setting_is_not_a_refused_prompt(
    server: Server, generator: Callable[..., OpenAIGenerator], body: str
) -> None:
    server.refuses = refusing(body=body)
    arrived = []
    with pytest.raises(GenerationError, match=r"^3 consecutive prompts were refused, .*`extra_body` can replace"):
        arrived.extend(generator(concurrency=1, max_refusals=3).stream([str(number) for number in range(9)]))
    assert not arrived and len(server.bodies) == 3


def test_refusals_with_a_reason_do_not_end_the_run(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    for status, body in EXPLAINED:
        server.refuses = refusing(status=status, body=body)
        found = generator(max_refusals=1).generate(list("abc"))
        assert [completion.finish_reason for [completion] in found] == ["refused"] * 3


def test_an_answer_resets_the_count_of_refusals(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.refuses = refusing(*"abcdefg", *"ijklmno")
    found = generator(concurrency=1).generate(list("abcdefghijklmnop"))
    assert [index for index, [completion] in enumerate(found) if completion.finish_reason == "stop"] == [7, 15]


def test_refusals_in_the_answer_itself(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    filtered = {"choices": [{"text": "def", "finish_reason": "content_filter"}]}
    refused = {"choices": [{"message": {"content": None, "refusal": "I can't."}, "finish_reason": "stop"}]}
    bare = {"choices": [{"message": {"refusal": "No."}, "finish_reason": "stop"}]}
    server.faults.extend(Fault(body=json.dumps(answer)) for answer in (filtered, refused, bare))
    found = [completion for [completion] in generator(concurrency=1).generate(["a", "b", "c"])]
    assert {completion.finish_reason for completion in found} == {"refused"}
    assert [(completion.text, completion.refusal) for completion in found] == [
        ("def", "content filter"),
        ("", "I can't."),
        ("", "No."),
    ]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        *((reason, "length") for reason in ("length", "max_tokens", "MAX_TOKENS", "model_length")),
        *((reason, "refused") for reason in ("content_filter", "SAFETY", "safety", "refusal", "RECITATION")),
        *((reason, "stop") for reason in ("stop", "STOP", "eos_token", "end_turn", "COMPLETE", "new reason", None)),
    ],
)
def test_names_of_finish_reasons(
    server: Server, generator: Callable[..., OpenAIGenerator], chat: bool, reason: str | None, expected: str
) -> None:
    server.finish_reason = reason
    [[completion]] = generator(chat=chat).generate(["abc"])
    assert (completion.text, completion.finish_reason) == ("ABC", expected)


@pytest.mark.parametrize("reason", ["error", "ERROR", "abort", "insufficient_system_resource"])
def test_completions_that_the_server_broke_off_are_requested_again(
    server: Server, generator: Callable[..., OpenAIGenerator], reason: str
) -> None:
    broken = {"choices": [{"text": "def", "finish_reason": reason}]}
    server.faults.extend([Fault(body=json.dumps(broken))] * 2)
    assert generator().generate(["a"])[0][0].text == "A"
    assert len(server.bodies) == 3
    server.finish_reason = reason
    with pytest.raises(GenerationError, match=f"`finish_reason` '{reason.lower()}'"):
        generator(max_retries=1).generate(["a"])
    assert generator().generate(["abc"], stop=["B"])[0][0].text == "A", "complete before the error"


def test_a_message_in_parts(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "x = "}]
    message = {"role": "assistant", "content": [*parts, {"type": "text", "text": "1"}]}
    server.faults.append(Fault(body=json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})))
    assert generator(chat=True).generate(["a"])[0][0].text == "x = 1"


def test_error_message_in_an_answer_is_shown(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    error = {"error": {"message": "Provider returned error", "code": 502}}
    server.faults.extend([Fault(body=json.dumps(error))] * 3)
    assert generator(max_retries=3).generate(["a"])[0][0].text == "A"
    server.faults.extend([Fault(body=json.dumps(error))] * 2)
    with pytest.raises(GenerationError, match=r"in 2 attempts, .* the error .*Provider returned error"):
        generator(max_retries=1).generate(["a"])


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens is deprecated, please use max_completion_tokens",
        '{"error": {"message": "Unknown parameter: max_tokens", "param": "max_tokens", "code": "unknown_parameter"}}',
        "[{'type': 'extra_forbidden', 'loc': ['body', 'max_tokens'], 'msg': 'Extra inputs are not permitted'}]",
        "This model does not support max_tokens",
    ],
)
def test_a_reasoning_server_that_refuses_max_tokens(
    server: Server, generator: Callable[..., OpenAIGenerator], message: str
) -> None:
    server.refuses = lambda body: Fault(400, message) if "max_tokens" in body else None
    made = generator(concurrency=1, chat=True)
    assert [completion.text for [completion] in made.generate(["a", "b"], max_new_tokens=7)] == ["A", "B"]
    assert ["max_tokens" in body for body in server.bodies] == [True, False, False]
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 7, 7]


def test_long_prompt_is_not_a_refused_field(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    body = (
        "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 64 tokens."
    )
    server.refuses = refusing("a", body=body)
    assert [completion.finish_reason for [completion] in generator(concurrency=1).generate(["a", "b"])] == [
        "refused",
        "stop",
    ]
    assert all("max_tokens" in body for body in server.bodies) and len(server.bodies) == 2


# What it costs


def usage_of(made: OpenAIGenerator, **sampling: Any) -> Usage:
    arrived = [completion for found in made.generate(["a", "b"], **sampling) for completion in found]
    total = sum((completion.usage for completion in arrived if completion.usage is not None), Usage())
    assert total == made.usage, "what completions have adds up to what the generator counts"
    return total


@pytest.mark.parametrize("choices", [1, 2, 100])
def test_usage(server: Server, generator: Callable[..., OpenAIGenerator], choices: int) -> None:
    server.choices = choices
    requests = 2 * -(-3 // min(choices, 3))
    assert usage_of(generator(), n=3, temperature=1.0) == Usage(requests, 5 * requests, 18)
    server.faults.append(Fault(500))
    assert usage_of(generator(concurrency=1)) == Usage(3, 10, 6), "repetitions are requests"
    server.refuses = refusing("a", status=413)
    assert usage_of(generator()) == Usage(2, 5, 3), "a refused one costs a request"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 40}, Usage(1, 9, 40)),
        ({"prompt_tokens": 9, "total_tokens": 49}, Usage(1, 9, 40)),
        ({"completion_tokens": 40, "total_tokens": 49}, Usage(1, 9, 40)),
        ({"total_tokens": 49}, Usage(1, 4, 45, estimated=True)),
        ({"prompt_tokens": 9}, Usage(1, 9, 2, estimated=True)),
        ({"completion_tokens": 40}, Usage(1, 4, 40, estimated=True)),
        ({}, Usage(1, 4, 2, estimated=True)),
        (None, Usage(1, 4, 2, estimated=True)),
        ({"prompt_tokens": "9", "completion_tokens": "40.0"}, Usage(1, 9, 40)),
        ({"prompt_tokens": -9, "completion_tokens": 40, "total_tokens": -1}, Usage(1, 4, 40, estimated=True)),
        ({"prompt_tokens": 9, "completion_tokens": "n/a"}, Usage(1, 9, 2, estimated=True)),
        ({"prompt_tokens": [9], "completion_tokens": {"text": 40}}, Usage(1, 4, 2, estimated=True)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, Usage(1, 4, 2, estimated=True)),
        ({"prompt_tokens": 99, "total_tokens": 49}, Usage(1, 49, 0)),
        ([9, 40], Usage(1, 4, 2, estimated=True)),
        ("49 tokens", Usage(1, 4, 2, estimated=True)),
    ],
)
def test_missing_counts_of_the_server(
    server: Server, generator: Callable[..., OpenAIGenerator], told: Any, expected: Usage
) -> None:
    answer = {"choices": [{"text": "abcdef", "finish_reason": "stop"}], "usage": told}
    server.faults.append(Fault(body=json.dumps(answer)))
    made = generator()
    made.generate(["a prompt of"])
    assert made.usage == expected


# Bad arguments


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"base_url": "localhost:8000"}, "`base_url` is 'localhost:8000'; give an address such as"),
        ({"base_url": "http://user:pass@host/v1"}, "`base_url` contains a user name"),
        ({"concurrency": 0}, "`concurrency` is 0"),
        ({"timeout": 0}, "`timeout` is 0"),
        ({"max_retries": -1}, "`max_retries` is -1"),
        ({"backoff": -1.0}, r"`backoff` is -1\.0"),
        ({"max_refusals": 0}, "`max_refusals` is 0"),
        ({"api_key": "two words"}, "`api_key` contains characters"),
        ({"api_key": "schlüssel"}, "`api_key` contains characters"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        OpenAIGenerator(**{"base_url": "http://localhost/v1", "model": "m", **settings})
    assert all(secret not in str(caught.value) for secret in ("pass@", "two words", "schlüssel"))


def test_request_out_of_range_is_not_sent(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    with pytest.raises(ValueError, match="`top_p` is 2"):
        generator().generate(["a"], top_p=2.0)
    assert generator().generate([]) == []
    assert server.bodies == []


def test_random_state_does_not_change(server: Server, generator: Callable[..., OpenAIGenerator]) -> None:
    server.faults.append(Fault(500))
    before = random.getstate()
    generator().generate(["a"], temperature=1.0)
    assert random.getstate() == before


# JSON


@pytest.mark.parametrize(
    "reason",
    [
        "Extra inputs are not permitted: response_format",
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
        "This server has no structured outputs.",
    ],
)
def test_json_schema_is_dropped_if_refused(
    server: Server, generator: Callable[..., OpenAIGenerator], reason: str
) -> None:
    plain = generator(chat=True, concurrency=1)
    structured = plain.with_schema("number", {"type": "number"})
    structured.generate(["a"])
    assert server.bodies[-1]["response_format"]["json_schema"] == {
        "name": "number",
        "strict": True,
        "schema": {"type": "number"},
    }
    server.refuses = lambda body: Fault(400, reason) if "response_format" in body else None
    assert [completion.text for [completion] in structured.generate(["b", "c"])] == ["B", "C"]
    assert ["response_format" in body for body in server.bodies] == [True, True, False, False]
    plain.generate(["d"])
    assert "response_format" not in server.bodies[-1]
