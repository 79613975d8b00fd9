"""What an lm_head with a low-rank adapter learns from: exact gradients, KL and evaluation from hidden states and
ids. Knows no engine: a host describes its head and hands over what it captured, as device tensors or numpy arrays.
Importing this loads torch.
"""

from __future__ import annotations

from .batch import Batch, CapturedTokens, Segment, TokenRows
from .checks import check_captures, check_signal, check_top_k
from .curvature import constant_row, curvature
from .distance import penalty, predicted_kl
from .evaluation import evaluate, evaluation_of, unusable
from .factors import MAX_RANK, Factors, check_weights, stack_factors
from .gradient import gradient
from .heads import DenseHead, Head, SampledHead
from .logits import BaseLogits
from .policy import Scratch
from .repetition import Repetition
from .shard import Shard
from .slices import Job

__all__ = [
    "MAX_RANK",
    "BaseLogits",
    "Batch",
    "CapturedTokens",
    "DenseHead",
    "Factors",
    "Head",
    "Job",
    "Repetition",
    "SampledHead",
    "Scratch",
    "Segment",
    "Shard",
    "TokenRows",
    "check_captures",
    "check_signal",
    "check_top_k",
    "check_weights",
    "constant_row",
    "curvature",
    "evaluate",
    "evaluation_of",
    "gradient",
    "penalty",
    "predicted_kl",
    "stack_factors",
    "unusable",
]
