"""Update rules: analytical teachers and learned policies, in one pure form."""

from l2o.rules.analytical import SGD, Adam, AddSign, AnalyticalRule, Momentum, PowerSign, RMSProp
from l2o.rules.averaged import Averaged, averaged, averaging
from l2o.rules.base import Horizon, State, UpdateRule, rule_from_config
from l2o.rules.choice import Choice
from l2o.rules.decayed import Decayed, decayed, decaying
from l2o.rules.layout import Layout, Window
from l2o.rules.modern import AdamW, Lion, Muon, NAdam
from l2o.rules.moving_average import MovingAverage
from l2o.rules.original import Original
from l2o.rules.pools import POOLS, TEACHERS, TUNED_RATES, get_pool, get_teacher
from l2o.rules.recurrent import GRU, CoordinateLSTM
from l2o.rules.rnnprop import RNNProp
from l2o.rules.scale import Scale
from l2o.rules.scheduled import Schedule, Scheduled, constant, cosine, linear
from l2o.rules.tensor_choice import TensorChoice
from l2o.rules.warmup import WarmUp, warmed_up, warming
from l2o.rules.wrapper import Wrapper, core, layer, layers, rewrapped

__all__ = [
    "GRU",
    "POOLS",
    "SGD",
    "TEACHERS",
    "TUNED_RATES",
    "Adam",
    "AdamW",
    "AddSign",
    "AnalyticalRule",
    "Averaged",
    "Choice",
    "CoordinateLSTM",
    "Decayed",
    "Horizon",
    "Layout",
    "Lion",
    "Momentum",
    "MovingAverage",
    "Muon",
    "NAdam",
    "Original",
    "PowerSign",
    "RMSProp",
    "RNNProp",
    "Scale",
    "Schedule",
    "Scheduled",
    "State",
    "TensorChoice",
    "UpdateRule",
    "WarmUp",
    "Window",
    "Wrapper",
    "averaged",
    "averaging",
    "constant",
    "core",
    "cosine",
    "decayed",
    "decaying",
    "get_pool",
    "get_teacher",
    "layer",
    "layers",
    "linear",
    "rewrapped",
    "rule_from_config",
    "warmed_up",
    "warming",
]
