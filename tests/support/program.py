"""Whole programs: `sona-stream serve` as a child process, talked to over real sockets."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
from forked import Forked

CLI = ("-m", "sona_stream.cli")
_READY = re.compile(r"(ready|listening) on (http\S+)")


@dataclasses.dataclass
class Answer:
    """One whole answer as it came over the wire."""

    status: int
    headers: httpx.Headers
    body: Any

    @property
    def text(self) -> str:
        choice = self.body["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]

    @property
    def request_id(self) -> str:
        return self.headers["x-sona-request-id"]

    @property
    def adapter(self) -> str:
        return self.headers["x-sona-adapter"]

    @property
    def version(self) -> int:
        return 0 if self.adapter == "none" else int(self.adapter.rpartition("@")[2])


class Client:
    """Somebody with a key (or none) who asks and teaches."""

    def __init__(self, url: str, key: str | None = None, *, model: str = "tiny") -> None:
        self.url, self.key, self.model = url, key, model
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60.0)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=key or "any", max_retries=0, timeout=60.0)

    def close(self) -> None:
        self.http.close()
        self.openai.close()

    def ask(self, text: str = "the quick brown fox", *, headers: dict[str, str] | None = None, **fields) -> Answer:
        """A greedy answer of 16 tokens, if ``fields`` does not say otherwise."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 16,
            **fields,
        }
        response = self.http.post("/v1/chat/completions", json=body, headers=headers)
        return Answer(response.status_code, response.headers, response.json())

    def feedback(self, *, wait: bool = True, headers: dict[str, str] | None = None, **body) -> tuple[int, Any]:
        response = self.http.post(f"/v1/feedback?wait={int(wait)}", json=body, headers=headers)
        return response.status_code, response.json()

    def teach(self, answer: Answer, **verdict) -> dict[str, Any]:
        """Feedback that must be taken; waits for what came of it."""
        status, outcome = self.feedback(request_id=answer.request_id, **verdict)
        assert status == 200, outcome
        return outcome

    def get(self, path: str) -> Any:
        response = self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str) -> float:
        """A sample of `/metrics` by its name and labels; 0 when it is not there."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0


class Program:
    """A running `sona-stream serve`."""

    def __init__(
        self,
        arguments: list[str],
        state: Path,
        log: Path,
        *,
        ready: bool = True,
        forked: bool = False,
        constants: Mapping[str, Any] | None = None,
        timeout: float = 180.0,
        **environment: str,
    ) -> None:
        """``ready``: wait until a model answers, not only until the server listens. ``forked``: from a process that
        has imported the heavy libraries; only then ``constants``.
        """
        self._wanted = "ready" if ready else "listening"
        self.state, self._log = state, log
        command = [*CLI, "serve", "--port", "0", "--state-dir", str(state), *arguments]
        self._output = log.open("ab")
        out, theirs = os.pipe()
        self._said_to = os.fdopen(out, encoding="utf-8", errors="replace")
        with open(os.devnull, "rb") as nothing:
            files = {"stdin": nothing.fileno(), "stdout": theirs, "stderr": self._output.fileno()}
            self.process = _start(command, environment, forked, constants=constants or {}, **files)
        os.close(theirs)
        self.url = ""
        self._said: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._clients: list[Client] = []
        if not self._ready.wait(timeout) or not self.url:
            self.stop(signal.SIGKILL)
            raise RuntimeError(f"the server did not get ready:\n{self.log}")

    def _read(self) -> None:
        for line in self._said_to:
            self._said.append(line)
            match = _READY.search(line)
            if match and match[1] == self._wanted:
                self.url = match[2]
                self._ready.set()
        self._ready.set()

    def client(self, key: str | None = None, **options) -> Client:
        """Closed when the program stops."""
        self._clients.append(Client(self.url, key, **options))
        return self._clients[-1]

    @property
    def log(self) -> str:
        """All it has written to the terminal."""
        return "".join(self._said) + self._log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)
            for client in self._clients:
                client.close()
            self._clients = []
            self._said_to.close()
            self._output.close()
        return code


def until(condition, *, seconds: float = 30.0, every: float = 0.05) -> Any:
    """What ``condition()`` says once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(every)
    return value


def _start(arguments: list[str], environment: Mapping[str, str], forked: bool, *, constants=None, **files: int):
    everything = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **environment}
    if forked:
        return Forked(arguments, everything, constants=constants or {}, **files)
    assert not constants
    return subprocess.Popen([sys.executable, *arguments], env=everything, **files)


def run_python(*arguments: str, given: str = "", forked: bool = True, **environment: str):
    """`python ARGUMENTS` (a script or ``-m``, a module and so on), run to its end."""
    with ExitStack() as stack:
        files = {name: stack.enter_context(tempfile.TemporaryFile()) for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write(given.encode())
        files["stdin"].seek(0)
        process = _start(
            list(arguments), environment, forked, **{name: one.fileno() for name, one in files.items()}
        )
        try:
            code = process.wait(120)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        for name in ("stdout", "stderr"):
            files[name].seek(0)
        written = [files[name].read().decode(errors="replace") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, code, *written)


def command(*arguments: str, state: Path | None = None, **options: Any):
    """`sona-stream ARGUMENTS`, run to its end as by `run_python`."""
    chosen = {"SONA_STREAM_STATE": str(state)} if state else {}
    return run_python(*CLI, *arguments, **{"COLUMNS": "200", **chosen, **options})


def write_config(path: Path, folder: Path, sona: dict[str, Any] | None = None, **params: Any) -> Path:
    """A file with one local model ``tiny``; JSON is YAML."""
    entry = {"model_name": "tiny", "litellm_params": {"model": f"local/{folder}", "threads": 1, **params}}
    path.write_text(json.dumps({"model_list": [entry], "sona": sona or {}}))
    return path


# One judgement moves a tiny random model visibly, the gates leave it room, and replays are short.
# A correction takes a step, as it does without a memory.
QUICK = {
    "memory": {"enabled": False},
    "engine": {"micro_lora_lr": 0.01},
    "learner": {
        "replay_steps": 4,
        "replay_every": 64,
        "max_kl_to_base": 20,
        "max_delta_ratio": 3,
        "max_logprob_drop": 5,
        "max_token_kl": 100,
        "max_repetition": 1,
        "elsewhere": 0,  # to a model of random weights all text is alike
    },
}
