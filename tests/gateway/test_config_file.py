"""The configuration file: what it says, and how it says what is wrong."""

from pathlib import Path

import msgspec
import pytest

from gateway.config import ConfigError
from gateway.config_file import json_schema, load, parse

POLICY = "policies: [{name: p, urls: ['http://127.0.0.1:1']}]\n"
REWARD = "rewards: [{name: r, urls: ['http://127.0.0.1:2']}]\n"


def test_several_of_everything() -> None:
    config = parse(
        b"""
policies:
  - name: large
    aliases: [gpt-4o]
    model: org/large
    urls: ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    api_key_env: PATH
    control_text: refuse
  - urls: ["http://127.0.0.1:3"]
rewards:
  - {name: helpful, urls: ["http://127.0.0.1:4"]}
  - {name: old, kind: pooling, urls: ["http://127.0.0.1:5"], offset: 0.5}
limits: {max_best_of: 8}
default_best_of: 4
allow_fields: [priority]
cors_origins: ["https://a.example"]
"""
    )
    large, other = config.policies
    assert (large.names, large.model, len(large.urls)) == (("large", "gpt-4o"), "org/large", 2)
    assert (other.names, other.api_key) == ((), None)
    assert [(reward.name, reward.kind, reward.upstream_model) for reward in config.rewards] == [
        ("helpful", "score", "helpful"),
        ("old", "pooling", "old"),
    ]
    assert (config.limits.max_best_of, config.limits.max_queue) == (8, 256)
    assert config.allow_fields == {"priority"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expected `object`"),
        ("[1]", "Expected `object`"),
        ("policies: []", "`policies` must list at least one"),
        ("polcies: []", "unknown field `polcies`"),
        ("policies: [{url: x}]", "policies[0]: Object contains unknown field `url`"),
        ("policies: [{urls: []}]", "policies[0]: `urls` must list"),
        ("policies: [{urls: [ftp://x]}]", "policies[0]: `urls` must be http://"),
        ("policies: [{urls: ['http://u:p@x']}]", "belongs into `api_key_env`"),
        ("policies: [{urls: ['http://x', 'http://x']}]", "twice"),
        ("policies: [{urls: ['http://x'], aliases: [a]}]", "`aliases` need a `name`"),
        ("policies: [{urls: ['http://x'], name: 'a:best-of-4'}]", ":best-of-NUMBER"),
        ("policies: [{urls: ['http://x'], timeout_s: '5'}]", "policies[0].timeout_s: Expected `float`"),
        ("policies: [{urls: ['http://x'], api_key_env: NOT_SET_ANYWHERE}]", "NOT_SET_ANYWHERE is not set"),
        (POLICY.replace("}]", "}, {name: p, urls: ['http://x']}]"), "the name p more than once"),
        (POLICY + "rewards: [{kind: pooling, urls: ['http://x']}]", "rewards[0]: kind pooling needs"),
        (POLICY + "rewards: [{kind: get_reward, urls: ['http://x']}]", "`template` belongs to"),
        (POLICY + "rewards: [{kind: magic, urls: ['http://x']}]", "rewards[0].kind"),
        (POLICY + "rewards: [{urls: ['http://x'], offset: 1}]", "`offset` belongs to"),
        (POLICY + "default_best_of: 4", "needs a reward model"),
        (POLICY + REWARD + "default_best_of: 65", "`default_best_of` must lie"),
        (POLICY + "allow_fields: [temperature]", "no field temperature"),
        (POLICY + "cors_origins: ['*', 'https://x']", "`cors_origins`"),
        (POLICY + "cors_origins: ['https://x/']", "`cors_origins` are like https://app.example:8443"),
        (POLICY + "cors_origins: ['https://x/page']", "`cors_origins` are like"),
        (POLICY + "cors_origins: [x.example]", "`cors_origins` are like"),
        (POLICY + "cors_origins: ['https://X.example']", "`cors_origins` are like"),
        (POLICY + "otlp_traces_endpoint: 'collector:4318'", "`otlp_traces_endpoint` must be http://"),
        (POLICY + "otlp_traces_endpoint: 'http://u:p@x'", "belongs into OTEL_EXPORTER_OTLP_HEADERS"),
        (POLICY + POLICY, "line 2: `policies` is given twice"),
        (POLICY + "limits: {max_queue: 1, max_queue: 2}", "line 2: `max_queue` is given twice"),
        (
            POLICY + "limits:\n  max_queue: 1\n  max_best_of: 2\n  max_queue: 2",
            "line 5: `max_queue` is given twice",
        ),
        ("policies: [", "line 1: not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \x01", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load(tmp_path / "nowhere.yaml")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(large)
    bad = tmp_path / "bad.yaml"
    bad.write_text("policies: []")
    with pytest.raises(ConfigError, match=r"bad\.yaml: `policies`"):
        load(bad)


def test_the_schema_knows_every_setting() -> None:
    schema = msgspec.json.decode(json_schema())
    assert {"policies", "rewards", "limits", "keys_file"} <= set(
        schema["$defs"]["GatewayConfig"]["properties"]
    )
    assert schema["$defs"]["GatewayConfig"]["additionalProperties"] is False
