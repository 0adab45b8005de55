from .entry_points import evaluate as evaluate
from .instances.instance_options import InstanceOptions as InstanceOptions
from .instances.metrics import InstanceMetrics as InstanceMetrics
from .instances.pairs import InstancePair as InstancePair
from .instances.pairs import evaluate_instance_cases as evaluate_instance_cases
from .instances.pairs import evaluate_instances as evaluate_instances
from .instances.pairs import instance_pairs as instance_pairs
from .instances.table import InstanceTable as InstanceTable
from .label_maps.evaluate_cases import evaluate_cases as evaluate_cases
from .label_maps.metric_options import MetricOptions as MetricOptions
from .label_maps.metrics import LabelMetrics as LabelMetrics
from .label_maps.metrics import compare_label_maps as compare_label_maps
from .label_maps.pairs import Pair as Pair
from .label_maps.pairs import pair_files as pair_files
from .label_maps.table import Statistics as Statistics
from .label_maps.table import Table as Table

__all__ = [
    "InstanceMetrics",
    "InstanceOptions",
    "InstancePair",
    "InstanceTable",
    "LabelMetrics",
    "MetricOptions",
    "Pair",
    "Statistics",
    "Table",
    "compare_label_maps",
    "evaluate",
    "evaluate_cases",
    "evaluate_instance_cases",
    "evaluate_instances",
    "instance_pairs",
    "pair_files",
]
