"""Generation with a real local server: `transformers serve` with a tiny model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from transformers.utils.import_utils import is_serve_available

from tests import tiny
from trl_akd.generation import OpenAIGenerator, TransformersGenerator

pytestmark = pytest.mark.skipif(
    not is_serve_available(), reason="needs what `transformers serve` does: transformers[serving]"
)

PROMPTS = ["def add(a, b):\n", "x", "for i in range(10):\n"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    net = tiny.model()
    net.generation_config.do_sample = True  # else it is greedy at any temperature
    net.save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    with (model / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while not alive(port):
            assert process.poll() is None and time.monotonic() < deadline, (model / "log.txt").read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def alive(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.mark.parametrize("chat", [False, True])
def test_greedy_is_that_of_the_model(url: str, model: Path, chat: bool) -> None:
    here = TransformersGenerator(tiny.model(), tiny.tokenizer()).generate(PROMPTS, max_new_tokens=12)
    there = OpenAIGenerator(url, str(model), chat=chat, timeout=60, max_retries=1).generate(PROMPTS, max_new_tokens=12)
    assert [completion.text for [completion] in there] == [completion.text for [completion] in here]
    assert [completion.finish_reason for [completion] in there] == [completion.finish_reason for [completion] in here]


def test_samples_of_a_server_without_n(url: str, model: Path) -> None:
    generator = OpenAIGenerator(url, str(model), timeout=60, max_retries=1)
    [first] = generator.generate(["x"], n=4, temperature=1.0, max_new_tokens=12, seed=0)
    assert len({completion.text for completion in first}) == 4
    assert generator.requests == 4
    assert generator.tokens > 0
    assert generator.generate(["x"], n=4, temperature=1.0, max_new_tokens=12, seed=0) == [first]
