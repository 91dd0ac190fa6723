"""Update rules: analytical teachers and learned policies, in one pure form."""

from l2o.rules.analytical import SGD, Adam, AddSign, Momentum, PowerSign, RMSProp
from l2o.rules.average import Averaged, averaged, averaging
from l2o.rules.base import State, UpdateRule, rule_from_config
from l2o.rules.choice import Choice
from l2o.rules.layout import Layout
from l2o.rules.original import Original
from l2o.rules.pools import POOLS, TEACHERS, TUNED_RATES, get_pool, get_teacher
from l2o.rules.rnnprop import RNNProp
from l2o.rules.scale import Scale

__all__ = [
    "POOLS",
    "SGD",
    "TEACHERS",
    "TUNED_RATES",
    "Adam",
    "AddSign",
    "Averaged",
    "Choice",
    "Layout",
    "Momentum",
    "Original",
    "PowerSign",
    "RMSProp",
    "RNNProp",
    "Scale",
    "State",
    "UpdateRule",
    "averaged",
    "averaging",
    "get_pool",
    "get_teacher",
    "rule_from_config",
]
