"""Triton's interpreter as vLLM's second model runner wants it where there is no GPU: before vLLM is imported."""

from __future__ import annotations

import os
import sys


def interpret_on_cpu():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.backends
    from triton.backends.compiler import BaseBackend, GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    class CpuDriver(DriverBase):
        @staticmethod
        def is_active():
            return False

        def get_current_target(self):
            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self):
            import torch

            return torch.device("cpu")

        def get_device_interface(self):
            import torch

            return torch.cpu

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_benchmarker(self):
            raise NotImplementedError

        def get_empty_cache_for_benchmark(self):
            raise NotImplementedError

        def clear_cache(self, cache):
            raise NotImplementedError

    # vLLM counts active backends to tell whether Triton works; the driver itself is set by hand.
    class Listed(CpuDriver):
        @staticmethod
        def is_active():
            return True

    triton.backends.backends["cpu"] = triton.backends.Backend(compiler=BaseBackend, driver=Listed)
    driver.set_active(CpuDriver())
    assert "vllm" not in sys.modules
