"""Parts of `benchmarks/vllm_learning.py`."""
