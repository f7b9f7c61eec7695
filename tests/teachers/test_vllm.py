"""A teacher behind `vllm serve`, if that is installed; vLLM's builds for CPUs suffice."""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.teachers.test_served import batch, outcomes, signal_of
from trl_akd.generation import GenerationError
from trl_akd.losses import SparseSignal
from trl_akd.teachers import ServedTeacher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("vllm") is None, reason="needs `vllm` on PATH"),
]
TEXTS = ([40, 7, 99, 3, 250], [5, 6], [*range(17, 60)])
MODEL = tiny.model("qwen2", hidden=128, seed=2, max_position_embeddings=512).eval()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("vllm")
    MODEL.save_pretrained(folder / "teacher")
    tiny.tokenizer().save_pretrained(folder / "teacher")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--served-model-name", "teacher", "--max-logprobs", "64", "--max-model-len", "100", "--enforce-eager"]
    command = ["vllm", "serve", str(folder / "teacher"), "--port", str(port), "--dtype", "float32", *options]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, folder / "log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    pytest.fail(log.read_text()[-3000:], pytrace=False)


def connect(url: str, **options) -> ServedTeacher:
    return ServedTeacher(
        url, "teacher", **{"vocabulary_size": tiny.VOCABULARY, "tokenizer": tiny.tokenizer(), **options}
    )


@pytest.mark.parametrize("k", [1, 5, 64])
def test_equals_the_signal_of_the_same_model(url: str, k: int):
    signal = signal_of(connect(url, top_k=k), batch(TEXTS))
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            full = MODEL(input_ids=torch.tensor([text])).logits[0].log_softmax(-1)
        top = SparseSignal.from_logits(full, k)
        for place, label in enumerate(text[1:]):
            expected = {token: full[place, token].item() for token in {*top.ids[place].tolist(), label}}
            assert outcomes(signal, row, place) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "text", "complaint"),
    [
        ({"top_k": 65}, [1, 2, 3], "`--max-logprobs 65`, or lower `top_k`"),
        ({}, [*range(100)], "it has 100 tokens, so start the server with `--max-model-len 101`"),
        ({}, [*range(150)], "it has 150 tokens, so start the server with `--max-model-len 151`"),
        ({}, [1, 2, 5000], "serve a teacher with the student's tokenizer"),
    ],
)
def test_refusals(url: str, options: dict, text: list[int], complaint: str):
    with pytest.raises(GenerationError, match=complaint):
        connect(url, **options).check(text)
