"""`sona.storage: none`: what was asked, answered and corrected is found nowhere afterwards."""

from __future__ import annotations

import signal

from program import QUICK, command, write_config

# Each is found, were it written in plain, escaped as JSON, or compressed away only with much luck.
PROMPT, CORRECTION, STOP, USER, NAME = (f"canary{word}zx" for word in ("prompt", "fix", "stop", "user", "name"))


def test_canaries_are_found_nowhere(serve, tiny_folder, tmp_path):
    config = write_config(tmp_path / "config.yaml", tiny_folder, {**QUICK, "storage": "none", "memory": {}})
    program = serve("--config", str(config), "--log-level", "debug")
    client = program.client()
    answer = client.ask(PROMPT, headers={"x-request-id": NAME}, stop=[STOP], user=USER, max_tokens=32)
    assert client.teach(answer, rating=-1)["status"] == "published"
    status, outcome = client.feedback(request_id=NAME, correction=CORRECTION)
    assert (status, outcome["status"]) == (200, "accepted")
    assert client.ask(PROMPT, stop=[STOP], max_tokens=32).text == CORRECTION  # from memory, in both senses
    client.ask([{"type": "text", "text": PROMPT}], stream_options=None)
    client.http.post("/v1/chat/completions", content=f'{{"model": "{PROMPT}", "messages": 3}}'.encode())
    client.feedback(request_id=PROMPT, rating=7)
    client.ask(model="sona/auto", messages=[{"role": "user", "content": PROMPT}])
    assert client.ask().version == 1  # what was learned is used all the same
    at_once = _written(program)  # what a kill would leave, the database's log included
    assert program.stop(signal.SIGINT) == 0
    written = {**at_once, **{("later", where): data for where, data in _written(program).items()}}
    for canary in (PROMPT, CORRECTION, STOP, USER, NAME, answer.body["id"]):
        for form in (canary.encode(), canary.encode("utf-16-le"), canary.encode().hex().encode()):
            assert [where for where, data in written.items() if form in data] == []
    text = answer.text.encode()
    assert len(text) > 16
    assert [where for where, data in written.items() if text in data] == []
    assert "sona.storage is none" in program.log
    assert command("state", "verify", state=program.state).returncode == 0
    # The answer went with the process that held it: this is said at once, also to those who do not wait.
    again = serve("--config", str(config), state=program.state).client()
    status, refused = again.feedback(request_id=answer.request_id, rating=1, wait=False)
    assert status == 410
    assert "sona.storage: features" in refused["error"]["message"]
    assert again.feedback(request_id=again.ask().request_id, rating=1, wait=False)[0] == 202


def _written(program):
    files = {path: path.read_bytes() for path in program.state.rglob("*") if path.is_file()}
    assert files
    return {**files, "the terminal": program.log.encode()}
