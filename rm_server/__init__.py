"""Rewards for conversations: serves reward-model checkpoints over HTTP."""
