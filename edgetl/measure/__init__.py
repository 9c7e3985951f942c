"""Scores of predictions, latency of calls, the environment, rows: used by the guard, by rank and by bench."""

from edgetl.measure.predict import predict, predict_each
from edgetl.measure.score import Paired, compare, metrics
from edgetl.measure.task import TASKS, Task, task_of
from edgetl.runtime.classify import softmax

__all__ = ["TASKS", "Paired", "Task", "compare", "metrics", "predict", "predict_each", "softmax", "task_of"]
