"""The kernels compiled by numba. Importing this compiles them, or loads what was compiled before."""

from __future__ import annotations

from .bank import attention_weight, blend, cheapest_merge, closest
from .cluster import cosine_topk, dequantize_row, kmeans_step, quantize_row, scores
from .episodes import nearest_in_list
from .lora import (
    fisher_accumulate,
    lora_batch,
    lora_batch_into,
    lora_gradients,
    lora_many,
    lora_row,
    lora_row_into,
)
from .micro import micro_push, micro_step
from .reductions import kl_rows, log_probabilities, softmax_minus_onehot, variance_rows

__all__ = [
    "attention_weight",
    "blend",
    "cheapest_merge",
    "closest",
    "cosine_topk",
    "dequantize_row",
    "fisher_accumulate",
    "kl_rows",
    "kmeans_step",
    "log_probabilities",
    "lora_batch",
    "lora_batch_into",
    "lora_gradients",
    "lora_many",
    "lora_row",
    "lora_row_into",
    "micro_push",
    "micro_step",
    "nearest_in_list",
    "quantize_row",
    "scores",
    "softmax_minus_onehot",
    "variance_rows",
]
