"""What `config show` prints and `config check` warns of."""

import json
from pathlib import Path

import pytest

from gpud import config
from gpud.core.errors import InvalidArguments

TEXT = """
idle: {timeout: 2m}
alerts: {webhook: "https://me:hush@example.org/hush?a=hush"}
engines: {ollama: {environment: {OLLAMA_TOKEN: hush}}}
models:
  llama3.2:3b: {engine: ollama}
  tiny: {engine: embedded, file: /none/tiny.gguf, size: 300MiB, environment: {HF_TOKEN: hush, A: b}}
  sim:
    engine: custom
    command: [run, --api-key, hush, --token=hush, --key, "${file}", "${port}"]
    size: 5
    unload: {post: /free, body: {secret: hush, all: true}}
"""


@pytest.fixture
def parsed() -> config.Config:
    return config.parse(TEXT, "/srv/gpud.yaml")


def test_one_key_is_shown(parsed: config.Config) -> None:
    """A value stands alone, a section is YAML; names with dots are found."""
    assert config.render(parsed, "idle.timeout") == "120\n"
    assert config.render(parsed, "models.llama3.2:3b.model") == "llama3.2:3b\n"
    assert config.render(parsed, "models.tiny.size") == "300MiB\n"
    assert config.render(parsed, "models.tiny.pinned") == "false\n"
    assert config.render(parsed, "bus").startswith("jobs: 16\nholds: 16\n")
    assert config.render(parsed) == config.to_yaml(parsed)
    assert "context: 4096" in config.render(parsed, "models.tiny")


def test_an_unknown_key_names_the_nearest(parsed: config.Config) -> None:
    """And what there is at that place."""
    with pytest.raises(InvalidArguments, match=r'cannot show "timeuot".*in "idle"; did you mean "timeout"') as caught:
        config.render(parsed, "idle.timeuot")
    assert caught.value.hint == "there are: timeout locked logged_out"
    with pytest.raises(InvalidArguments) as caught:
        config.render(parsed, "idle.timeout.more")
    assert caught.value.hint == '"idle.timeout" has no keys below it'


def test_secrets_are_masked(parsed: config.Config) -> None:
    """Variables, fields of a body and flags whose names say so; placeholders and the rest stay."""
    shown = config.to_yaml(parsed)
    assert "hush" not in shown
    assert config.to_yaml(parsed, secrets=True).count("hush") == 8
    assert "A: b" in shown
    assert "- ${file}" in shown
    assert "--token=********" in shown


def test_limits_are_shown_as_they_are_written() -> None:
    """Words where there are words for it."""
    parsed = config.parse("idle: {timeout: auto}\ngpu: {external_busy_mib: 6144, watch: 0, alert_percent: 95}", "x")
    assert config.render(parsed, "idle.timeout") == "auto\n"
    assert config.render(parsed, "gpu.external_busy_mib") == "6144\n"
    assert config.render(parsed, "gpu.alert_percent") == "95%\n"
    assert config.render(parsed, "eviction") == "policy: hybrid\nresidence: 0\nabove: never\nbelow: 80%\n"
    assert config.render(parsed, "queue.turn") == "10\n"
    assert config.render(parsed, "prefetch.page_cache") == "true\n"
    assert config.render(config.parse("gpu: {alert_percent: never}", "x"), "gpu.alert_percent") == "never\n"


def test_several_engines_are_shown_with_what_differs() -> None:
    """What they agree on stands once; where they agree on all, a list is enough."""
    text = "models: {m: {engine: [llama_server, embedded], file: /none/m.gguf}}"
    assert config.render(config.parse(text, "x"), "models.m.engine") == "- llama_server\n- embedded\n"
    text = "models: {m: {engine: {llama_server: {layers: 3}, ollama: {context: 5000}}, file: /none/m.gguf}}"
    shown = config.render(config.parse(text, "x"), "models.m")
    assert "engine:\n  llama_server:\n    context: 4096\n    layers: 3\n" in shown
    assert "\nfile: /none/m.gguf\n" in shown
    assert len(config.warnings(config.parse(text, "x"))) == 1


def test_warnings_name_what_is_valid_and_not_meant(parsed: config.Config, tmp_path: Path) -> None:
    """A file that is not there, a size that forgot its unit, an open door."""
    said = config.warnings(parsed)
    assert any('models.tiny.file: there is no file "/none/tiny.gguf" now' in one for one in said)
    assert any("models.sim.size: is 5 bytes" in one for one in said)
    file = tmp_path / "m.gguf"
    file.touch()
    assert config.warnings(config.parse(f"models: {{m: {{engine: embedded, file: {file}}}}}", "x")) == ()


@pytest.mark.parametrize("text", ["0E0", "08", "1e5", "on", "null", "~", "1_0", "5.", "", "- a", "a: b", "#", "é\n b "])
def test_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    """What was text when it was read is text when it is read again."""
    template = text or "x"
    before = "models: {a: {engine: embedded, file: /a, chat_template: %s, environment: {A: %s}}}"
    parsed = config.parse(before % (json.dumps(template), json.dumps(text)), "x")
    assert parsed.models["a"].settings.chat_template == template
    assert config.parse(config.to_yaml(parsed), "x") == parsed
