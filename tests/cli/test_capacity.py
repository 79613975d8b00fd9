"""`sona-stream capacity` at the command line: what it prints, from where it takes its numbers, what it refuses."""

import json

import pytest
from click.testing import CliRunner

from sona_stream.cli import main


def run(*words, code=0):
    ran = CliRunner().invoke(main, ["capacity", *map(str, words)])
    assert ran.exit_code == code, ran.output
    return ran.output


def told(*words):
    return json.loads(run("--json", *words))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 96, "vocab_size": 500}')
    path = tmp_path / "config.yaml"
    path.write_text(f"""
model_list:
- model_name: other
  litellm_params: {{model: openai/gpt, api_base: "http://127.0.0.1:1"}}
- model_name: mine
  litellm_params: {{model: {json.dumps("local/" + str(tmp_path / "model"))}, adapter_mb: 3}}
- model_name: far
  litellm_params: {{model: vllm/org/far, api_base: "http://127.0.0.1:1", control_key: aaaaaaaaaaaaaaaaaaaa}}
sona:
  engine: {{profile: research}}
  learner: {{adapter_mb: 1, keep_versions: 4}}
  memory: {{tenant_episodes: 50}}
""")
    return path


def test_a_table_with_totals_and_the_bound_that_is_reached_first():
    out = run("--users", 5000)
    lines = out.splitlines()
    assert lines[0].startswith("5,000 users of 1 tenants; 1 patterns, 32 lessons, 10 episodes")
    assert "rank 2 + 8; hidden size 576, on a local model" in lines[1]
    assert [line.split("  ")[0] for line in lines if line.endswith("bound")] == [
        "on disk", "in this program", "at the model",
    ]  # fmt: skip
    assert sum(line.startswith("  total") for line in lines) == 3
    assert lines[-1].startswith("first: sona.learner.replay_mb, with ")


def test_numbers_come_from_the_configuration_and_flags_go_first(config):
    mine = told("--config", config, "--users", 10)
    assert mine["host"] == "local"
    load = mine["load"]
    assert (load["hidden_dim"], load["vocab"], load["rank"], load["base_rank"]) == (96, 500, 2, 16)
    limits = {one["setting"]: one for one in mine["limits"]}
    assert limits["sona.learner.adapter_mb"]["limit"] == 1 << 20
    assert limits["litellm_params.adapter_mb"]["limit"] == 3 << 20
    weights = 8 * 96 * 18
    assert limits["sona.learner.adapter_mb"]["users"] == (1 << 20) // (3 * (weights * 5 // 2 + 32))
    assert limits["sona.memory.tenant_episodes"]["users"] == 5
    assert mine["first"] == {"setting": "sona.memory.tenant_episodes", "users": 5}
    rows = {(row["place"], row["what"]): row for row in mine["rows"]}
    assert rows["host", "adapters"]["needed"] == 10 * 3 * weights
    assert rows["disk", "adapter versions"]["each"] == 3 * (4 + 2)
    for place, total in mine["totals"].items():
        assert total["needed"] == sum(row["needed"] for (where, _), row in rows.items() if where == place)
        assert total["within_bounds"] <= total["needed"]
    other = told("--config", config, "--rank", 1, "--base-rank", 0, "--hidden-dim", 64, "--vocab", 99, "--vllm")
    assert other["host"] == "vllm"
    assert [other["load"][name] for name in ("rank", "base_rank", "hidden_dim", "vocab")] == [1, 0, 64, 99]
    assert told("--config", config, "--model", "far", "--hidden-dim", 1024)["host"] == "vllm"


def test_what_is_needed_grows_with_everything_that_is_asked_for():
    base = told()["totals"]
    for flag, value in (("users", 200), ("patterns", 4), ("base-rank", 32), ("tokens", 128), ("episodes", 20)):
        more = told(f"--{flag}", value)["totals"]
        assert all(more[place]["needed"] >= base[place]["needed"] for place in base), flag
        assert more != base, flag


def test_bounds_of_a_server_come_from_its_environment(monkeypatch):
    monkeypatch.setenv("SONA_VLLM_ADAPTER_MB", "0.5")
    limits = {one["setting"]: one["limit"] for one in told("--vllm")["limits"]}
    assert limits["SONA_VLLM_ADAPTER_MB"] == 1 << 19
    monkeypatch.setenv("SONA_VLLM_ADAPTER_MB", "much")
    assert run("--vllm", code=1) == "Error: SONA_VLLM_ADAPTER_MB='much': expected a number of megabytes\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--users", 0), "Invalid value for '--users': 0 is not in the range 1<=x<="),
        (("--rank", 3), "Invalid value for '--rank': 3 is not in the range 1<=x<=2."),
        (("--base-rank", 65), "Invalid value for '--base-rank'"),
        (("--tokens", "many"), "'many' is not a valid integer"),
        (("--model", "org/unknown"), "the size of 'org/unknown' is not known here: name a folder with its config"),
        (("--tenants", 101), "--tenants 101 is more than --users 100"),
        (("--config", "nowhere.yaml"), "does not exist"),
    ],
)
def test_wrong_flags_get_one_clear_line(words, says):
    [error] = [line for line in run(*words, code=2).splitlines() if line.startswith("Error")]
    assert says in error


def test_a_wrong_configuration_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("sona: {engine: {micro_lora_rank: 9}}")
    assert run("--config", path, code=1).startswith("Error: ")
