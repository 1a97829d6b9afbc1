"""`python -m gateway up`: the policy on vLLM, the reward-model server and the gateway as one local stack.

    python -m gateway up --policy runs/demo/dpo --reward-model runs/demo/reward

All three listen on loopback (the gateway elsewhere on request). A folder that is no checkpoint, a port in use
or a dead child is one clear line and a non-zero exit code: 2 for flags and ports, 3 for checkpoints, a
child's own where that is one of 2 to 7, else 1. SIGTERM, SIGHUP and Ctrl-C are the normal end of a server:
every child stops, exit code 0; a second signal stops at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import httpx

from gateway import launch_checks as checks
from gateway.launch_checks import LaunchError
from gateway.launch_display import make_display, things_to_try
from gateway.launch_flags import Options, read_flags
from gateway.launch_specs import (
    LOOPBACK,
    ChildSpec,
    Model,
    gateway_spec,
    policy_spec,
    reward_spec,
    url_of,
)
from gateway.launch_stack import Stack, stop_signals

WATCH_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be started, stage by stage, and where it will answer."""

    stages: list[list[ChildSpec]]
    url: str
    has_reward: bool


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the three servers will listen."""

    gateway: int
    policy: int
    reward: int


def main(argv: Sequence[str]) -> int:
    """Check, start, serve until stopped; the exit code."""
    options = read_flags(argv)
    try:
        return serve(make_plan(options), options)
    except LaunchError as error:
        print(f"bonsai up: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while checking, before anything was started
        return 0


def make_plan(options: Options) -> Plan:
    """Everything that can be known before anything starts. LaunchError where something is wrong."""
    for flag, url in (("--policy-url", options.policy_url), ("--reward-url", options.reward_url)):
        if url is not None:
            checks.check_server(flag, url)
    policy = _model(options.policy, options.served_model_name)
    reward = _model(options.reward_model, None)
    ports = _choose_ports(options)
    policy_url = options.policy_url or url_of(LOOPBACK, ports.policy)
    reward_url = options.reward_url or (url_of(LOOPBACK, ports.reward) if reward is not None else None)
    backends = []
    if policy is not None:
        backends.append(_plan_policy(policy, ports.policy, options))
    if reward is not None:
        backends.append(_plan_reward(reward, ports.reward, options))
    gateway = gateway_spec(
        python=sys.executable,
        host=options.host,
        port=ports.gateway,
        policy_url=policy_url,
        reward_url=reward_url,
        default_best_of=options.default_best_of,
        more_args=options.gateway_args,
    )
    url = url_of(options.host, ports.gateway)
    return Plan(stages=[backends, [gateway]], url=url, has_reward=reward_url is not None)


def _choose_ports(options: Options) -> Ports:
    gateway, policy, reward = checks.choose_ports(
        [
            ("--port", options.host, options.port),
            ("--policy-port", LOOPBACK, options.policy_port),
            ("--reward-port", LOOPBACK, options.reward_port),
        ]
    )
    return Ports(gateway=gateway, policy=policy, reward=reward)


def _plan_policy(model: Model, port: int, options: Options) -> ChildSpec:
    engine = checks.engine_kind()
    if engine == "cpu" and model.is_local:
        checks.check_head_size(Path(model.source))
    return policy_spec(
        model,
        python=sys.executable,
        port=port,
        engine=engine,
        num_cores=len(os.sched_getaffinity(0)),
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        kv_cache_gib=options.kv_cache_gib,
        more_args=options.vllm_args,
    )


def _plan_reward(model: Model, port: int, options: Options) -> ChildSpec:
    return reward_spec(
        model,
        python=sys.executable,
        port=port,
        num_cores=len(os.sched_getaffinity(0)),
        dtype=options.reward_dtype,
        more_args=options.reward_args,
    )


def _model(source: str | None, name: str | None) -> Model | None:
    """The checkpoint that a flag names, verified where it is a local folder."""
    if source is None:
        return None
    folder = checks.find_checkpoint(source)
    if folder is None:
        return Model(source=source, name=name or source, is_local=False)
    if not checks.check_checkpoint(folder):
        print(f"bonsai up: {source} has no manifest.json: taken unverified", file=sys.stderr)
    return Model(source=str(folder), name=name or folder.name, is_local=True)


def serve(plan: Plan, options: Options) -> int:
    """Start the stack, say so, and stay until a signal or a death; nothing is left behind."""
    try:
        options.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--log-dir {options.log_dir}: {error.strerror}", exit_code=2) from error
    _remove_ready_file(options)
    stack = Stack(plan.stages, options.log_dir, options.start_timeout)
    with stop_signals() as (stop, hurry):
        try:
            with make_display() as display:
                is_up = stack.start(stop, display.show)
            if is_up:
                _announce(plan, options, stack)
                _watch(stack, stop)
            print("bonsai up: stopping", flush=True)
        finally:
            try:
                _remove_ready_file(options)
            finally:
                stack.stop(hurry)
    return 0


def _announce(plan: Plan, options: Options, stack: Stack) -> None:
    """Tell programs that wait, and people."""
    model = _served_name(plan.url)
    if options.ready_file is not None:
        _write_ready_file(options.ready_file, {"url": plan.url, "pids": stack.pids()})
    print(things_to_try(plan.url, model, has_reward=plan.has_reward), flush=True)


def _watch(stack: Stack, stop: Event) -> None:
    while not stop.wait(WATCH_S):
        stack.check()


def _served_name(url: str) -> str:
    """The first model that the gateway lists."""
    try:
        answer = httpx.get(f"{url}/v1/models", timeout=10.0, trust_env=False)
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise LaunchError(f"the gateway is up but names no model at {url}/v1/models", 1) from error


def _remove_ready_file(options: Options) -> None:
    """It is there for as long as all is ready: one of an earlier stack would send programs astray."""
    if options.ready_file is None:
        return
    try:
        options.ready_file.unlink(missing_ok=True)
    except OSError as error:
        raise LaunchError(f"--ready-file {options.ready_file}: {error.strerror}", exit_code=2) from error


def _write_ready_file(path: Path, content: dict[str, object]) -> None:
    """A file that appears whole, after all is ready."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(path)
