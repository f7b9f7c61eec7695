"""A local server with OpenAI's interface, with faults on demand."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """A faulty response to a request."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    hang_up: bool = False
    drip: float = 0.0  # seconds before each byte


class Server(ThreadingHTTPServer):
    """Answer each prompt with itself in upper case, its seed and the number of the choice."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: deque[Fault] = deque()
        self.refuses: Callable[[dict[str, Any]], Fault | None] = lambda body: None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.choices = 100  # most in an answer
        self.logprobs = True
        self.finish_reason: str | None = "stop"
        self.under_way = self.most_under_way = 0
        self.pause = 0.0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        chat = path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        choices = []
        for index in range(min(body.get("n", 1), self.choices)):
            text = f"{prompt.upper()} {body.get('seed')} {index}" if body["temperature"] else prompt.upper()
            choice: dict[str, Any] = {"index": index, "finish_reason": self.finish_reason}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            if body.get("logprobs") and self.logprobs:
                numbers = [-1.0, -2.0, -3.0]
                choice["logprobs"] = (
                    {"content": [{"token": "x", "logprob": number} for number in numbers]}
                    if chat
                    else {"tokens": ["x"] * 3, "token_logprobs": numbers}
                )
            choices.append(choice)
        usage = {"prompt_tokens": 5, "completion_tokens": 3 * len(choices), "total_tokens": 5 + 3 * len(choices)}
        return {"choices": choices, "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            fault = server.faults.popleft() if server.faults else None
        fault = fault or server.refuses(body)
        time.sleep(server.pause)
        if fault is None:
            fault = Fault(body=json.dumps(server.answer(self.path, body)))
        time.sleep(fault.delay)
        with server.lock:
            server.under_way -= 1
        content = fault.body.encode()
        try:
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + 100 * fault.hang_up))
            self.end_headers()
            for byte in content if fault.drip else ():
                time.sleep(fault.drip)
                self.wfile.write(bytes([byte]))
            if not fault.drip:
                self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has lost patience
        self.close_connection = fault.hang_up or self.close_connection

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
