"""What the assembled program keeps for how long."""

import time

import pytest

from sona_stream.app import Application
from sona_stream.config.settings import Settings, SonaSettings, StorageSettings


def test_the_learner_forgets_answers_when_the_store_does(tmp_path):
    sona = SonaSettings(storage_options=StorageSettings(features_ttl_days=2.5))
    learner = Application(Settings(sona=sona), directory=tmp_path)._new_learner()
    assert learner._state.books.since == pytest.approx(time.time() - 2.5 * 86400, abs=60)
