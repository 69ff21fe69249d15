"""Comparing what was found with the truth: masks, scores, label maps."""

from niseg_gpu.evaluate.labels import LabelEvaluation, evaluate_labels
from niseg_gpu.evaluate.masks import Evaluation, evaluate_mask
from niseg_gpu.evaluate.scores import ScoreEvaluation, evaluate_scores
from niseg_gpu.evaluate.strengths import StrengthEvaluation, evaluate_strengths

__all__ = [
    "Evaluation",
    "LabelEvaluation",
    "ScoreEvaluation",
    "StrengthEvaluation",
    "evaluate_labels",
    "evaluate_mask",
    "evaluate_scores",
    "evaluate_strengths",
]
