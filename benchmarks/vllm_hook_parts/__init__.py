"""Parts of `benchmarks/vllm_hook.py`."""
