"""Open-loop load against a running stack."""
