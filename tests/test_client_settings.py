"""``site.toml``: strict, and every refusal says what was meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from synth_client.settings import SiteSettings, load_settings
from synth_common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def values() -> dict[str, Any]:
    return {
        "site": {"name": "north"},
        "data": {
            "nominal_patients": 40,
            "source": {"kind": "folder", "name": "scans", "path": "images"},
        },
        "budget": {"epsilon": 8.0},
    }


def _load(folder: Path, changed: dict[str, Any]) -> SiteSettings:
    (folder / "site.toml").write_text(tomli_w.dumps(changed))
    return load_settings(folder, "north")


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    settings = _load(tmp_path, values())
    assert settings.limits.rounds_per_day is None
    assert settings.server.proxy is None
    assert (settings.budget.delta, settings.budget.unit) == (1e-5, "patient")
    assert settings.compute.device == "auto"


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        (
            "limits",
            "rounds_perday",
            3,
            r"limits\.rounds_perday: .*did you mean limits\.rounds_per_day\?",
        ),
        ("budget", "epslion", 3, r"budget\.epslion: .*did you mean budget\.epsilon\?"),
        ("data", "colour", 3, r"data\.colour: unknown key"),
        ("limits", "rounds_per_day", 0, r"limits\.rounds_per_day = 0: must be at least 1"),
        ("budget", "epsilon", -1.0, r"budget\.epsilon = -1\.0: must be above 0"),
        ("budget", "epsilon", float("inf"), r"budget\.epsilon = inf"),
        ("server", "proxy", "proxy:3128", r"server\.proxy = 'proxy:3128': .*http://HOST:PORT"),
        ("server", "proxy", "http://proxy", r"server\.proxy = 'http://proxy': .*HOST:PORT"),
        ("compute", "device", "tpu", r"compute\.device = 'tpu': .*'cpu'"),
        ("limits", "min_patients", 41, r"limits\.min_patients = 41 is above .* = 40"),
        ("site", "name", "no th", r"site\.name = 'no th'"),
        ("site", "name", "south", r"site\.name = 'south', but --site north"),
    ],
)
def test_a_refusal_names_the_key_the_value_and_the_fix(
    tmp_path: Path, section: str, key: str, value: object, words: str
) -> None:
    changed = values()
    changed.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError, match=words):
        _load(tmp_path, changed)


def test_a_key_of_a_source_is_suggested_from_its_kind(tmp_path: Path) -> None:
    changed = values()
    changed["data"]["source"]["pth"] = changed["data"]["source"].pop("path")
    with pytest.raises(ConfigError, match=r"did you mean data\.source\.path\?"):
        _load(tmp_path, changed)
    changed["data"]["source"] = {"kind": "folder", "name": "a", "path": "b", "imagekey": "c"}
    with pytest.raises(ConfigError, match=r"known here: kind, name, path, licence"):
        _load(tmp_path, changed)  # image_key is a key of npz sources only


def test_a_file_that_is_missing_or_no_toml_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml: .*synth-client init --site north"):
        load_settings(tmp_path, "north")
    (tmp_path / "site.toml").write_text("[site\n")
    with pytest.raises(ConfigError, match=r"site\.toml is not TOML"):
        load_settings(tmp_path, "north")


def _keys(model: Any, prefix: str = "") -> set[str]:
    """``section.key`` of every setting; those of sources and evaluation have pages of their own."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if prefix == "" and name != "evaluation":
            found |= _keys(kind, f"{name}.")
        elif prefix:
            found.add(prefix + name)
    return found


def test_every_key_is_documented_and_nothing_else() -> None:
    page = (ROOT / "docs/reference/site.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+\.[a-z_]+)`", page, re.M))
    assert documented == _keys(SiteSettings)
