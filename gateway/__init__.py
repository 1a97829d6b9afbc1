"""The front door: OpenAI's API over a vLLM policy, with best-of-N by a reward model on any request."""
