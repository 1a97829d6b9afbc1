"""The command line makes the configuration; what cannot work is said in one line, with exit code 2."""

import dataclasses
from pathlib import Path

import pytest

from gateway.config import ConfigError, GatewayConfig, Limits, PolicyConfig, RewardConfig
from gateway.flags import build_parser, read_flags

URLS = ["--policy-url", "http://127.0.0.1:1", "--reward-url", "http://127.0.0.1:2"]
ALL = [
    *URLS,
    *["--host", "0.0.0.0", "--port", "81", "--workers", "2", "--drain-delay", "1", "--drain-timeout", "5"],
    *["--policy-url", "http://127.0.0.1:3", "--policy-name", "p", "--policy-timeout", "60"],
    *["--policy-api-key-env", "HOME", "--control-text", "refuse"],
    *["--reward-name", "r", "--reward-kind", "get_reward", "--reward-offset", "0.5", "--reward-timeout", "3"],
    *["--reward-template", "{{ messages }}", "--reward-api-key-env", "PATH"],
    *["--keys-file", "keys.json", "--public-metrics", "--cors-origin", "https://a.example"],
    *["--on-reward-failure", "first", "--default-best-of", "4", "--heartbeat", "2"],
    *["--allow-field", "priority", "--allow-field", "media"],
    *["--max-best-of", "8", "--max-candidates-per-request", "16", "--max-concurrent-candidates", "32"],
    *["--log-format", "text", "--log-level", "error", "--no-request-log"],
    *["--max-queue", "3", "--max-queue-wait", "0.5", "--max-body-bytes", "2048"],
    *["--otlp-traces-endpoint", "http://127.0.0.1:4318/v1/traces"],
]
LOG = {"format": "text", "level": "error", "requests": False}
SERVER = {"host": "0.0.0.0", "port": 81, "workers": 2, "drain_delay_s": 1, "drain_s": 5}


def test_the_least_that_is_needed() -> None:
    load, options = read_flags(URLS)
    assert load() == GatewayConfig(
        policies=(PolicyConfig(urls=("http://127.0.0.1:1",)),),
        rewards=(RewardConfig(urls=("http://127.0.0.1:2",)),),
    )
    assert (options.host, options.port, options.workers) == ("127.0.0.1", 8000, 1)
    assert (options.drain_delay_s, options.drain_s) == (5, 30)


def test_every_flag_is_read() -> None:
    load, options = read_flags(ALL)
    assert dataclasses.asdict(options) == SERVER | {"log": LOG}
    policy = PolicyConfig(
        urls=("http://127.0.0.1:1", "http://127.0.0.1:3"),
        name="p",
        timeout_s=60,
        api_key_env="HOME",
        control_text="refuse",
    )
    reward = RewardConfig(
        urls=("http://127.0.0.1:2",),
        model="r",
        kind="get_reward",
        offset=0.5,
        template="{{ messages }}",
        timeout_s=3,
        api_key_env="PATH",
    )
    assert load() == GatewayConfig(
        policies=(policy,),
        rewards=(reward,),
        limits=Limits(
            max_best_of=8,
            max_candidates_per_request=16,
            max_concurrent_candidates=32,
            max_queue=3,
            max_queue_wait_s=0.5,
            max_body_bytes=2048,
        ),
        default_best_of=4,
        on_reward_failure="first",
        heartbeat_s=2,
        allow_fields=frozenset({"priority", "media"}),
        keys_file="keys.json",
        public_metrics=True,
        cors_origins=("https://a.example",),
        otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces",
    )
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    assert flags - set(ALL) == {"-h", "--help", "--config"}


def test_a_file_is_read_again_each_time(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("policies: [{urls: ['http://127.0.0.1:1']}]")
    load, _ = read_flags(["--config", str(file), "--port", "81"])
    assert load().policies[0].name is None
    file.write_text("policies: [{urls: ['http://127.0.0.1:1'], name: p}]")
    assert load().policies[0].name == "p"


@pytest.mark.parametrize(
    "flags", [["--reward-url", "http://x"], ["--max-best-of", "8"], ["--public-metrics"]]
)
def test_a_flag_does_not_stand_beside_the_file(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("policies: [{urls: ['http://127.0.0.1:1']}]")
    with pytest.raises(SystemExit) as caught:
        read_flags(["--config", str(file), *flags])
    assert caught.value.code == 2
    assert f"{flags[0]} belongs into the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "--policy-url"),
        ([*URLS, "--config", "x.yaml"], "--config"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        ([*URLS, "--policy-api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        ([*URLS, "--reward-kind", "get_reward"], "--reward-template"),
        ([*URLS, "--policy-url", "http://127.0.0.1:1"], "--policy-url"),
        (["--policy-url", "127.0.0.1:1"], "--policy-url must be"),
        (["--policy-url", "ftp://x"], "--policy-url must be"),
        (["--policy-url", "http://x", "--default-best-of", "4"], "--default-best-of"),
        ([*URLS, "--default-best-of", "65"], "--default-best-of"),
        ([*URLS, "--default-best-of", "0"], "--default-best-of"),
        ([*URLS, "--max-best-of", "0"], "--max-best-of"),
        ([*URLS, "--max-candidates-per-request", "2"], "--max-candidates-per-request"),
        ([*URLS, "--max-concurrent-candidates", "2"], "--max-concurrent-candidates"),
        ([*URLS, "--max-queue", "-1"], "--max-queue"),
        ([*URLS, "--max-queue-wait", "-1"], "--max-queue-wait"),
        ([*URLS, "--max-body-bytes", "1"], "--max-body-bytes"),
        ([*URLS, "--heartbeat", "0"], "--heartbeat"),
        ([*URLS, "--policy-timeout", "0"], "--policy-timeout"),
        ([*URLS, "--reward-timeout", "0"], "--reward-timeout"),
        ([*URLS, "--reward-offset", "1"], "--reward-offset"),
        ([*URLS, "--reward-kind", "pooling"], "--reward-name"),
        ([*URLS, "--allow-field", "temperature"], "--allow-field"),
        ([*URLS, "--port", "65536"], "--port"),
        ([*URLS, "--port", "http"], "--port"),
        ([*URLS, "--typo"], "--typo"),
    ],
)
def test_what_cannot_work_is_named(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_flags(argv)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_help_gives_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_flags(["--help"])
    text = capsys.readouterr().out
    assert text.count("default:") >= 16
    assert "best-of" in text


def test_a_configuration_checks_itself() -> None:
    with pytest.raises(ConfigError):
        GatewayConfig(policies=(PolicyConfig(urls=("http://x",)),), default_best_of=2)
