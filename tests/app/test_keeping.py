"""What the assembled program keeps for how long."""

import time

import pytest

from sona_stream.app import Application
from sona_stream.config.settings import Deployment, Settings, SonaSettings, StorageSettings


async def test_the_learner_forgets_answers_when_the_store_does(tmp_path):
    model = Deployment(
        model_name="m", provider="openai", upstream_model="m", params={"api_base": "http://127.0.0.1:9/v1"}
    )
    sona = SonaSettings(storage_options=StorageSettings(features_ttl_days=2.5))
    program = Application(Settings(models=(model,), sona=sona), directory=tmp_path)
    await program.startup()
    try:
        learner = program._new_learner()
        assert learner._state.books.since == pytest.approx(time.time() - 2.5 * 86400, abs=60)
    finally:
        await program.shutdown()
