"""Every command but `serve` and `chat`: what it does, and that wrong input gets one line, never a traceback."""

from __future__ import annotations

import re

import anyio
import pytest
from click.testing import CliRunner
from program import write_config

from sona_stream.cli import main
from sona_stream.config.load import hash_key
from sona_stream.config.settings import SonaSettings
from sona_stream.events import Trajectory
from sona_stream.store import SqliteStore


def run(*arguments, code=0, given=None):
    result = CliRunner().invoke(main, list(map(str, arguments)), input=given)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def server(shared, monkeypatch):
    monkeypatch.setenv("SONA_API_KEY", "gateway")
    return ("--base-url", shared.url)


def test_route_shows_the_decision_and_loads_no_model(tmp_path, tiny_folder):
    config = write_config(tmp_path / "c.yaml", tiny_folder)
    said = run("route", "Write a Python function", "--config", config, "--state-dir", tmp_path / "state")
    assert re.search(r"model: +tiny", said)
    assert "CodeGen" in said
    assert not (tmp_path / "state").exists()


def test_keys_are_hashed():
    assert run("keys", "hash", given="secret\n").splitlines()[-1] == hash_key("secret")
    key, hashed = re.findall(r"(sk-sona-\S+|sha256:\S+)", run("keys", "hash", "--new"))
    assert hash_key(key) == hashed


def test_adapters_are_listed_and_rolled_back(server, tenant):
    answer = tenant.ask()
    key = tenant.teach(answer, rating=-1)["adapter"].rpartition("@")[0]
    tenant.teach(tenant.ask("another"), rating=-1)
    listed = run("adapters", "list", *server)
    assert re.search(rf"^  {re.escape(key)}@1 .*step", listed, re.M)
    assert re.search(rf"^\* {re.escape(key)}@2 ", listed, re.M)
    assert f"{key} is at version 1" in run("adapters", "rollback", key, "1", *server)
    assert tenant.ask().version == 1
    assert "not_found" not in run("adapters", "rollback", key, "77", *server, code=1)


def test_freeze_and_thaw(server, tenant):
    try:
        assert "frozen" in run("freeze", *server)
        assert tenant.get("/v1/sona/stats")["learner"]["frozen"] is True
    finally:
        assert "thawed" in run("thaw", *server)
    assert tenant.get("/v1/sona/stats")["learner"]["frozen"] is False


def test_bench_measures_a_server_and_the_kernels(server):
    said = run("bench", *server, "--model", "tiny", "--requests", "4", "--concurrency", "2", "--max-tokens", "4")
    assert re.search(r"first token +\d+\.\d ms", said)
    said = run("bench", "--hidden-dim", "64")
    assert re.search(r"micro-LoRA, one vector +\d+\.\d", said)


def test_models_pull_of_a_folder_prints_it(tiny_folder):
    assert run("models", "pull", tiny_folder).strip() == str(tiny_folder)


def test_state_of_nothing(tmp_path):
    assert "there is no state in" in run("state", "verify", "--state-dir", tmp_path / "none", code=1)
    backup = ("state", "backup", tmp_path / "b.tar", "--state-dir", tmp_path / "none")
    assert "there is no state in" in run(*backup, code=1)
    nothing = tmp_path / "nothing.tar"
    nothing.write_bytes(b"no archive")
    said = run("state", "restore", nothing, "--state-dir", tmp_path / "none", code=1)
    assert "not a backup" in said
    assert said.count("\n") == 1


def test_state_of_a_running_server_can_be_backed_up_and_not_replaced(shared, tmp_path):
    target = tmp_path / "backup.tar"
    run("state", "backup", target, "--state-dir", shared.state)
    run("state", "restore", target, "--state-dir", tmp_path / "copy")
    run("state", "verify", "--state-dir", tmp_path / "copy")
    assert "Error" in run("state", "restore", target, "--state-dir", shared.state, "--force", code=1)


def test_a_tenant_or_a_person_is_forgotten_while_no_server_runs(shared, tmp_path):
    folder = ("--state-dir", tmp_path / "state")
    assert "there is no state in" in run("state", "forget", "--tenant", "acme", *folder, code=1)
    asked = {"request_id": "r", "tenant": "acme", "key_id": "k", "model": "m"}

    async def fill() -> None:
        async with SqliteStore(SonaSettings(storage="text"), directory=tmp_path / "state") as store:
            for user in ("alice", "bob", "carol"):
                store.submit_trajectory(
                    Trajectory(**{**asked, "request_id": user}, user=user, query=f"canary-{user}", started_at=1.0)
                )
            await store.put_blob("learner/m/acme/*", b"{}")

    anyio.run(fill)
    said = run("state", "forget", "--tenant", "acme", "--user", "alice", *folder)
    assert said == "forgot user alice of tenant acme: 1 trajectories\n"
    assert run("state", "forget", "--tenant", "other", *folder) == "forgot tenant other: nothing was kept\n"
    assert _anywhere(tmp_path, b"canary-bob")
    assert not _anywhere(tmp_path, b"canary-alice")
    said = run("state", "forget", "--tenant", "acme", *folder)
    assert said == "forgot tenant acme: 2 trajectories, 1 blobs\n"
    assert not _anywhere(tmp_path, b"canary-")
    assert "is in use by process" in run("state", "forget", "--tenant", "x", "--state-dir", shared.state, code=1)
    assert "--tenant" in run("state", "forget", *folder, code=2)


def _anywhere(folder, canary):
    return any(canary in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("adapters", "list", "--base-url", "127.0.0.1:9"), 1, "sona-stream serve"),
        (("adapters", "list", "--base-url", "ftp://x"), 2, "http(s) URL"),
        (("freeze", "--base-url", "http://127.0.0.1:9"), 1, "sona-stream serve"),
        (("chat", "--base-url", "http://127.0.0.1:9"), 1, "sona-stream serve"),
        (("chat", "--temperature", "9"), 2, "--temperature"),
        (("bench", "--base-url", "http://127.0.0.1:9", "--requests", "1"), 1, "sona-stream serve"),
        (("models", "pull", "/nowhere"), 1, "no model at"),
        (("route",), 2, "QUERY"),
        (("route", "x", "--config", "/nowhere.yaml"), 2, "--config"),
        (("adapters", "rollback", "key", "-1"), 2, "No such option"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_wrong_input_gets_a_clear_line(arguments, code, said):
    assert said in run(*arguments, code=code)


def test_a_key_without_the_role_is_told(shared, monkeypatch):
    monkeypatch.setenv("SONA_API_KEY", "user")
    assert "`admin`" in run("adapters", "list", "--base-url", shared.url, code=1)
    monkeypatch.delenv("SONA_API_KEY")
    assert "API key" in run("adapters", "list", "--base-url", shared.url, code=1)
