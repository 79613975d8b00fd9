import pytest
from fake_vllm_server import FakeVllm


@pytest.fixture
def vllm():
    with FakeVllm() as server:
        yield server
