from .config import ExperimentConfig as ExperimentConfig
from .experiment import Experiment as Experiment

__all__ = ["Experiment", "ExperimentConfig"]
