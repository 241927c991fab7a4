"""`oscar-bridge why NAME`: what became of an event, by all that the bridge, its store and others know of it.

The journal tells what happened, the store what is kept, a running daemon what it has in hand, the clusters
what became of jobs, and the upstreams whether they have an event that the bridge does not know.
"""

from bridge.why.asking import Answer, AskHands, Story, why
from bridge.why.fates import Fate, Told
from bridge.why.hands import Hands, in_hand
from bridge.why.lines import knows, lines
from bridge.why.name import Name

__all__ = ["Answer", "AskHands", "Fate", "Hands", "Name", "Story", "Told", "in_hand", "knows", "lines", "why"]
