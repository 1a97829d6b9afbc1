"""Rewards for conversations: serves reward-model checkpoints over HTTP."""

import os

# Read when torch is loaded. By default waiting OpenMP threads spin for milliseconds; beside one other busy
# process a forward pass on two cores then takes ten times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
