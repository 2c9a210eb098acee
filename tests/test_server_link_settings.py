"""What server.toml says about the link reaches it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from enrolment_scenario import found

from synth_common.errors import ConfigError
from synth_common.flower import link
from synth_server import network
from synth_server.network import open_network
from synth_server.settings import LimitSettings, ServerFolder, ServerSettings, load_settings


def _limited(tmp_path: Path, **limits: object) -> tuple[ServerFolder, ServerSettings]:
    folder = found(tmp_path).folder
    settings = load_settings(folder).model_copy(
        update={"bind": "127.0.0.1:8443", "limits": LimitSettings.model_validate(limits)}
    )
    return folder, settings


def test_limits_and_the_folder_of_what_is_in_transit_reach_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[link.Listener] = []

    def opened(listener: link.Listener, doorkeeper: object) -> object:
        given.append(listener)
        return link.open_link(replace(listener, port=0), doorkeeper)

    monkeypatch.setattr(network, "open_link", opened)
    folder, settings = _limited(tmp_path, max_reply_bytes=2**21, spool="transit")
    with open_network(folder, settings):
        pass
    assert given[0].max_reply_bytes == 2**21
    assert given[0].spool == folder.path / "transit"
    assert given[0].spool.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_used_is_named_with_its_key(tmp_path: Path) -> None:
    folder, settings = _limited(tmp_path, spool="plan.json")
    with (
        pytest.raises(ConfigError, match=r"limits\.spool = 'plan\.json'"),
        open_network(folder, settings),
    ):
        pass
