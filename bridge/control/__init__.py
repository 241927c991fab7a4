"""What a person changes while the bridge runs: limits, pauses, and whether a loss was seen.

A change is an override: it holds in place of the configuration's value until its time is over, a person ends
it, or the configuration has another value. Overrides are kept in the state directory, so a restart ends none.
"""

from bridge.control.control import Control, Live
from bridge.control.giving import acknowledge, give
from bridge.control.losses import Acknowledgement, Losses
from bridge.control.orders import LONGEST, Order, Overrides, Part, Row

__all__ = [
    "LONGEST",
    "Acknowledgement",
    "Control",
    "Live",
    "Losses",
    "Order",
    "Overrides",
    "Part",
    "Row",
    "acknowledge",
    "give",
]
