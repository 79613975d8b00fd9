"""The server of `sona-stream chat` ends with its parent's pipe, and quietly when it is told to stop before."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("told", ["signal", "end of input"])
def test_a_server_on_a_leash_ends_with_code_0_and_without_a_word(tmp_path, told: str):
    command = [sys.executable, "-m", "sona_stream.cli", "serve", "--port", "0", "--until-eof"]
    command += ["--upstream", "http://127.0.0.1:9", "--state-dir", str(tmp_path), "--log-level", "error"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert "listening on" in process.stdout.readline()
        if told == "signal":
            process.terminate()
            assert process.wait(20) == 0
        process.stdin.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
