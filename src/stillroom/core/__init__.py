"""The words that every room shares: batches, signals, needs, terms, updates, methods, runs.

Needs torch and nothing else. Nothing here trains, loads or samples.
"""

from stillroom.core.batch import Bag, Batch
from stillroom.core.diagnostic import Diagnostic, Findings, Past
from stillroom.core.method import (
    Method,
    Needs,
    Objective,
    Paper,
    Run,
    Setup,
    Teacher,
    Term,
    Update,
)
from stillroom.core.pipeline import Lesson, Pipeline, Work
from stillroom.core.signals import Head, Signals, Sparse
from stillroom.failures import Failure

__all__ = [
    "Bag",
    "Batch",
    "Diagnostic",
    "Failure",
    "Findings",
    "Head",
    "Lesson",
    "Method",
    "Needs",
    "Objective",
    "Paper",
    "Past",
    "Pipeline",
    "Run",
    "Setup",
    "Signals",
    "Sparse",
    "Teacher",
    "Term",
    "Update",
    "Work",
]
