from __future__ import annotations

import pytest
from tiny_model import running, save_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The loaded model, as the product sees it."""
    from sona_stream_adapters.local.model import load_model

    return load_model(tiny_folder, name="tiny")


@pytest.fixture(scope="session")
def reference(tiny_folder):
    """The same model through transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture
async def backend(tiny_folder):
    async with running(tiny_folder) as made:
        yield made
