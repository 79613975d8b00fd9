import pytest
from fake_vllm import FakeVllm


@pytest.fixture
def vllm():
    with FakeVllm() as server:
        yield server
