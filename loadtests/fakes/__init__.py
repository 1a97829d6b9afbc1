"""Programmable stand-ins for what is behind a gateway: a vLLM server and a reward server without a model; and
a proxy that breaks what passes through it, before any HTTP server.

    python -m loadtests.fakes vllm --port 8100 --script '{"delay_ms": 20, "tokens": 64, "interval_ms": 10}'
    python -m loadtests.fakes reward --port 8200 --script '{"faults": [{"kind": "nan", "share": 0.05}]}'
    python -m loadtests.fakes proxy --port 8300 --upstream http://127.0.0.1:8100 \\
        --script '{"faults": [{"kind": "reset", "after": 500, "share": 0.1}]}'

The servers answer as the real ones do, as slowly and as badly as their script says
(`loadtests.fakes.script`). All keep a record of every call, with its instants by the monotonic clock. While
one runs:

    PUT    /_ctl/script     another script, whole; GET shows it
    GET    /_ctl/state      {"calls", "open", "aborted", "faults": {KIND: count}}
    GET    /_ctl/records    the newest calls (`loadtests.fakes.records.Record`); DELETE forgets them
"""
