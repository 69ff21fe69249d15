"""Comparing what was found with the truth: masks, scores, label maps."""

from niseg_gpu.evaluate.labels import LabelEvaluation, evaluate_labels
from niseg_gpu.evaluate.masks import Evaluation, evaluate_mask
from niseg_gpu.evaluate.scores import ScoreEvaluation, evaluate_scores

__all__ = [
    "Evaluation",
    "LabelEvaluation",
    "ScoreEvaluation",
    "evaluate_labels",
    "evaluate_mask",
    "evaluate_scores",
]
