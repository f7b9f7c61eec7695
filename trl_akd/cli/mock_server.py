"""Mock server with OpenAI's interface and canned replies, for IterKD's teacher and judge in a dry run."""

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from ..iterkd.judge.rubric import RULES, Judgement, format_judgement

__all__ = ["run_mock_server", "write_prompts"]

_HOST = "127.0.0.1"
_RIGHT = "```python\ndef answer():\n    return 42\n```"
_FAULTY = "```python\ndef answer():\n    return 41\n\nanswr()\n```"
_WORDS = (
    "amber bridge candle desert engine forest garden harbour island jacket kettle ladder meadow needle orchard pepper "
    "quarry ribbon saddle temple umbrella valley window yellow zebra anchor basket copper dragon feather"
).split()
_LAYOUTS = {
    "correct": "[right] {instruction}",
    "faulty": "[faulty] {kind} {instruction}",
    "new_easy": "[new] {instruction}",
    "new_same": "[new] {instruction}",
}
_JUDGE_LAYOUT = "[judge] {instruction}\n{answer}"


def write_prompts(folder: Path) -> tuple[str, str]:
    """Write prompts that the mock server recognizes, and return the prompt files of teacher and judge."""
    prompts, judge_prompt = folder / "prompts.yaml", folder / "judge_prompt.txt"
    prompts.write_text(yaml.safe_dump(_LAYOUTS), encoding="utf-8")
    judge_prompt.write_text(_JUDGE_LAYOUT, encoding="utf-8")
    return str(prompts), str(judge_prompt)


@contextmanager
def run_mock_server(answer: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Iterator[str]:
    """Run a server on a free port, and yield its address.

    Args:
        answer (`Callable`, *optional*):
            Function of the body of a request that returns that of the response. Defaults to the canned replies.
    """
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [no_proxy, _HOST]))
    with _Server(answer or _canned_answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://{_HOST}:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__((_HOST, 0), _Handler)
        self.answer = answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps(self.server.answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def _canned_answer(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    text = _reply(prompt, body.get("seed"))
    choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
    return {"choices": [choice], "usage": usage}


def _reply(prompt: str, seed: int | None) -> str:
    """Return a right or faulty answer, a judgement, or a question that depends on prompt and seed."""
    kind = prompt.partition(" ")[0]
    if kind == "[right]":
        return _RIGHT
    if kind == "[faulty]":
        return _FAULTY
    if kind == "[judge]":
        return format_judgement(Judgement(tuple(0.0 if _FAULTY in prompt else rule.maximum for rule in RULES)))
    return f"Sort these words: {' '.join(random.Random(f'{seed}:{prompt}').sample(_WORDS, 8))}."
