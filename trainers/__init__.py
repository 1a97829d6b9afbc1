"""Trains the checkpoints that the gateway serves: pretrain, sft, reward, dpo."""
