"""Which files of shown folders are hidden, on a tree made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import hidden


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what this machine has."""
    monkeypatch.setattr(hidden, "MACHINE", ())


def test_settings_and_folders_with_content_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("x")
    (tmp_path / "module.py").write_text("x")
    for name in (".ssh", ".aws"):
        (tmp_path / name).mkdir()
    (tmp_path / ".ssh" / "key").write_text("x")
    assert hidden.hidden([tmp_path, tmp_path]) == [tmp_path / "pip.conf", tmp_path / ".ssh"]


def test_behind_a_link_is_hidden_what_is_shown(tmp_path: Path) -> None:
    shown, other = tmp_path / "shown", tmp_path / "other"
    for folder in (shown, other):
        folder.mkdir()
        (folder / "tokens").write_text("x")
    (shown / "pip.conf").symlink_to("tokens")
    (shown / ".netrc").symlink_to(other / "tokens")
    (shown / ".env").symlink_to(".env")
    (shown / "uv.toml").symlink_to("nowhere")
    assert hidden.hidden([shown, tmp_path / "missing"]) == [shown / "tokens"]


def test_a_folder_of_the_machine_is_hidden_where_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "usr" / "etc"
    settings.mkdir(parents=True)
    monkeypatch.setattr(hidden, "MACHINE", (str(settings),))
    assert hidden.hidden([tmp_path / "usr"]) == []
    (settings / "file").write_text("x")
    assert hidden.hidden([tmp_path / "usr"]) == [settings]
    assert hidden.hidden([tmp_path / "usr" / "etc" / "file"]) == []
