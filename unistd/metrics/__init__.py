"""Measures of a forecast, accumulated over batches in constant memory, and the baselines every model must beat.

Each file states the exact definition of what it measures. All measures honour missing values: a target pixel that is
NaN was not measured, and counts nowhere. Each but FVD, which is of whole clips, is also given per lead time, that is,
per forecast frame.
"""

from unistd.metrics.baselines import Baseline, TrainingMean, linear, repeat_last
from unistd.metrics.forecast import ForecastMetrics, Scores
from unistd.metrics.learned import NETWORKS
from unistd.metrics.measures import DEFAULT_METRICS, MEASURES, Measure, check_metrics, measure_of
from unistd.metrics.ssim import SMALLEST_SIDE

__all__ = [
    "DEFAULT_METRICS",
    "MEASURES",
    "NETWORKS",
    "SMALLEST_SIDE",
    "Baseline",
    "ForecastMetrics",
    "Measure",
    "Scores",
    "TrainingMean",
    "check_metrics",
    "linear",
    "measure_of",
    "repeat_last",
]
