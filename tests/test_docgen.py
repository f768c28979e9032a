from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from sidecar import docgen
from sidecar.config_file import load
from sidecar.core.policy import Policy, Strategy
from sidecar.docgen import COMMAND, ROOT, TARGETS, Target, config_file, main, settings_reference
from sidecar.settings import ANY, Key, Settings, effective, keys


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.path)
def test_a_committed_document_is_what_the_code_says(target: Target) -> None:
    assert (ROOT / target.path).read_text(encoding="utf-8") == target.text(), f"run `{COMMAND}`"


def test_the_shipped_settings_file_equals_the_defaults() -> None:
    assert load(ROOT / "config/sidecar.yaml", environ={}, flags={}) == Settings()


def test_the_shipped_settings_file_holds_every_key_in_order() -> None:
    def shape(of: object) -> object:
        return [(key, shape(value)) for key, value in of.items()] if isinstance(of, dict) else None

    written, known = yaml.safe_load(config_file()), effective(Settings())
    assert written["routes"] == {path: {} for path in known["routes"]}  # each under the default policy
    written["routes"] = known["routes"]
    assert shape(written) == shape(known)


def test_the_example_in_the_shipped_settings_file_can_be_put_to_use(tmp_path: Path) -> None:
    text = config_file().replace("  nodes: {}\n", "").replace("  # nodes:", "  nodes:")
    path = tmp_path / "sidecar.yaml"
    path.write_text(text.replace("  #   security_guard_detection", "    security_guard_detection"), encoding="utf-8")
    guard = Policy(strategy=Strategy.NETWORK_FIRST, stale_if_error=0.0)
    assert load(path, environ={}, flags={}).policy.nodes == {"security_guard_detection": guard}


@pytest.mark.parametrize("key", [key for key in keys() if ANY not in key.path], ids=lambda key: ".".join(key.path))
def test_both_documents_name_what_is_allowed_the_default_and_the_variable_of_a_key(key: Key) -> None:
    path, kind, default, reason = key
    variable = f"SIDECAR_{'__'.join(path).upper()}"
    said = " ".join(config_file().replace("\n", " ").replace("#", " ").split())
    assert f"{reason[1:]}. {variable}: {kind.allowed}; default {default}" in said
    cells = f"`{'.'.join(path)}` | {kind.allowed.replace('|', chr(92) + '|')} | `{default}` | `{variable}` | "
    assert cells in settings_reference()
    assert f"{reason[1:]}. |" in settings_reference()


def test_a_line_of_the_settings_file_fits_on_a_screen() -> None:
    assert max(map(len, config_file().splitlines())) <= 110


@pytest.mark.parametrize(
    ("text", "scalar"),
    [("4s", "4s"), ("20%", "20%"), ("127.0.0.1:1", "127.0.0.1:1"), ("[::1]:1", '"[::1]:1"'), ("*", '"*"')],
)
def test_a_value_stands_in_quotes_where_yaml_would_take_it_for_something_else(text: str, scalar: str) -> None:
    assert docgen._scalar(text) == scalar
    assert yaml.load(scalar, yaml.BaseLoader) == text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(docgen, "ROOT", tmp_path)
    monkeypatch.setattr(docgen, "TARGETS", [Target("a/b.md", lambda: "b\n"), Target("c.md", lambda: "ç\n")])
    return tmp_path


def test_the_command_writes_what_is_missing_or_stale_and_says_so(folder: Path) -> None:
    (folder / "c.md").write_text("ç\n", encoding="utf-8")
    assert CliRunner().invoke(main).output == "a/b.md written.\n"
    assert (folder / "a/b.md").read_text(encoding="utf-8") == "b\n"
    again = CliRunner().invoke(main)
    assert (again.exit_code, again.output) == (0, "")


def test_the_check_writes_nothing_and_fails_while_a_document_is_stale(folder: Path) -> None:
    (folder / "c.md").write_text("old", encoding="utf-8")
    stale = CliRunner().invoke(main, ["--check"])
    assert stale.exit_code == 1
    assert f"a/b.md is not what the code says; run `{COMMAND}`.\nc.md is not" in stale.output
    assert (folder / "c.md").read_text(encoding="utf-8") == "old"
    CliRunner().invoke(main)
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0
