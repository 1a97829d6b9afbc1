"""Rewards for conversations: serves reward-model checkpoints over HTTP."""

import os

# Read when torch is loaded. By default waiting OpenMP threads spin for milliseconds; beside one other busy
# process a forward pass on two cores then takes ten times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Also read when torch is loaded. oneDNN and torch's layer over it keep what they prepare for each shape of a
# product, room for its result included: 1,024 shapes each by default, and every other number of tokens is
# another shape. Under mixed requests that was some 500 MiB within minutes, for a model of 3 M parameters.
# Eight hold the shapes of a pass, and are as fast.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "8")
