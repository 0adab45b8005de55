"""The experiment: its typed config, and the only place that composes all parts."""

from medseg.experiment.config import Experiment

__all__ = ["Experiment"]
