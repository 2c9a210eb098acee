"""Charters: strict, frozen, quoted with their digest, and documented key by key."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w
from pydantic import ValidationError

from synth_common.charter import (
    Charter,
    SiteCharter,
    charter_template,
    left_out,
    load_charter,
    load_site_charter,
)
from synth_common.claims import claim_in
from synth_common.errors import ConfigError
from synth_common.reporting import ethics_cli
from synth_common.terminal import guarded
from synth_common.validation import validate
from synth_sim import audit_cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/reference/charter.md").read_text(encoding="utf-8")
LEAST = {"title": "Chests", "contact": "office", "licence": {"spdx": "CC-BY-4.0"}}


def _written(folder: Path, values: dict[str, object]) -> Path:
    path = folder / "charter.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


def test_three_keys_are_enough_and_the_rest_is_left_out(tmp_path: Path) -> None:
    path = _written(tmp_path, LEAST)
    charter = load_charter(path)
    assert charter.origin is not None
    assert charter.origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert charter.licence.name == "CC-BY-4.0"
    missing = left_out(charter)
    assert {"purpose", "approvals", "residual_risk.review", "security.measures"} <= set(missing)
    assert not {"title", "contact", "licence"} & set(missing)
    with pytest.raises(ValidationError):
        charter.title = "other"  # type: ignore[misc]


def test_a_licence_file_is_read_from_the_charters_folder(tmp_path: Path) -> None:
    # The words of a licence are its owner's, and stay as they are.
    (tmp_path / "TERMS").write_text("\nOur terms\nAnonymous contributions are welcome.\n")
    charter = load_charter(_written(tmp_path, LEAST | {"licence": {"file": "TERMS"}}))
    assert charter.licence.text == (tmp_path / "TERMS").read_text()
    assert charter.licence.name == "Our terms"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"purpsoe": "x"}, r"purpsoe: unknown key .*did you mean purpose\?"),
        ({"title": " "}, r"title = ' ': must have at least 1"),
        ({"title": "fill in"}, r"title = 'fill in': is a placeholder; .*leave the key out"),
        ({"title": "..."}, r"title = '\.\.\.': is a placeholder; .*leave the key out"),
        ({"purpose": "Anonymised data"}, r"purpose = 'Anonymised data': .*what was done"),
        ({"limits": ["x", "GDPR does not apply"]}, r"limits\.1 = 'GDPR.*says \"GDPR .*which law"),
        ({"licence": {"spdx": "CC BY 4"}}, r"licence\.spdx = 'CC BY 4': .*spdx\.org/licenses"),
        ({"licence": {}}, r"licence: give spdx"),
        ({"licence": {"file": "absent"}}, r"licence: file = 'absent': cannot be read"),
        ({"licence": {"file": "a", "text": "b"}}, r"licence: text and file are both given"),
        ({"residual_risk": {"review": "soon"}}, r"residual_risk\.review = 'soon'"),
        ({"roles": [{"name": "A"}]}, r"roles\.0\.role: required"),
    ],
)
def test_a_refusal_names_field_value_and_fix(
    changed: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_charter(_written(tmp_path, LEAST | changed))


@pytest.mark.parametrize(
    ("text", "phrase", "instead"),
    [
        ("The data are ANONYMISED fully", "ANONYMISED", "what was done"),
        ("Images are not personal  data", "not personal data", "what was done"),
        ("They are no longer personal data", "no longer personal data", "what was done"),
        ("shall not be personal data", "not be personal data", "what was done"),
        ("Patients cannot be re-identified.", "cannot be re-identified", "who found what"),
        ("It can’t be reidentified", "can't be reidentified", "who found what"),
        ("cannot be traced back to anybody", "cannot be traced back to", "who found what"),
        ("A waiver: most patients cannot be traced", None, None),
        ("The gdpr does not apply", "gdpr does not apply", "which law"),
        ("Outside the scope of the GDPR", "Outside the scope of the GDPR", "which law"),
        ("no longer subject to the GDPR", "no longer subject to the GDPR", "which law"),
        ("Public bodies are not subject to GDPR 35 here", None, None),
        ("Nothing is sent outside the GDPR area", None, None),
        ("GDPR 6(1)(e); personal data are not sent. Pseudonyms stay.", None, None),
        ("Attempts to re-identify anybody are forbidden", None, None),
    ],
)
def test_claims_are_found_by_their_words(text: str, phrase: str | None, instead: str) -> None:
    found = claim_in(text)
    assert (found and found.phrase) == phrase
    if found is not None:
        assert instead in found.instead
        assert "assessment of the whole case" in str(found)
        with pytest.raises(ConfigError, match=rf"purpose = .*says \"{re.escape(found.phrase)}\""):
            validate(Charter, LEAST | {"purpose": text}, "charter")


def test_the_page_names_the_words_that_are_refused() -> None:
    table = PAGE.split("| Words | Write instead |")[1].split("\n\n")[0]
    for words in ("anonym", "personal data", "re-identified", "traced back to", "does not apply"):
        assert f"{words}`" in table


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"site": "no th"}, r"site = 'no th'"),
        ({"consent": "presumed"}, r"consent = 'presumed': must be .*'opt-out'"),
        (
            {"dates": {"first": "2020-02-01", "last": "2020-01-01"}},
            r"dates: dates\.first = 2020-02-01 is after dates\.last = 2020-01-01; exchange",
        ),
        ({"devices": "X-ray"}, r"devices = 'X-ray'"),
    ],
)
def test_a_sites_refusals_name_field_value_and_fix(
    changed: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_site_charter(_written(tmp_path, {"site": "north"} | changed))


def test_templates_are_refused_until_filled_in_and_every_line_in_them_is_valid(
    tmp_path: Path,
) -> None:
    (tmp_path / "charter.toml").write_text(charter_template("federation"))
    with pytest.raises(ConfigError, match=r"title = 'FILL IN'.*contact.*licence\.spdx"):
        load_charter(tmp_path / "charter.toml")
    for kind, load in (("federation", load_charter), ("site", load_site_charter)):
        text = charter_template(kind, "hill").replace('"FILL IN"', '"MIT"')  # type: ignore[arg-type]
        (tmp_path / "LICENSE.txt").write_text("Terms")
        whole = re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.M).replace('"..."', '"words"')
        (tmp_path / "whole.toml").write_text(whole)
        assert left_out(load(tmp_path / "whole.toml")) == []  # type: ignore[operator]


def test_the_page_has_every_key_and_its_example_loads(tmp_path: Path) -> None:
    sections = PAGE.split("\n## ")
    for title, model in (("The federation's charter", Charter), ("A site's charter", SiteCharter)):
        table = next(s for s in sections if s.startswith(title))
        keys = set()
        for name, field in model.model_fields.items():
            parts = getattr(field.annotation, "model_fields", None)
            keys |= {f"{name}.{p}" for p in parts} if parts else {name}
        assert set(re.findall(r"^\| `([a-z_.]+)` \|", table, re.M)) == keys
    example = re.search(r"```toml\n(.*?)```", PAGE, re.S)
    assert example is not None
    assert load_charter(_written(tmp_path, tomllib.loads(example[1]))).roles[0].role


def _run(*arguments: object) -> int:
    return guarded(lambda: audit_cli.app([str(a) for a in arguments], standalone_mode=True))


def test_the_command_writes_once_and_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {k.value for k in ethics_cli.CharterKind} == {"federation", "site"}
    file = tmp_path / "hill.toml"
    assert _run("charter", file, "--kind", "site", "--site", "hill") == 0
    assert _run("charter", file) == 2
    assert "exists" in capsys.readouterr().err
    assert _run("charter", file, "--kind", "site", "--check") == 0
    out = capsys.readouterr().out
    assert "NOT RECORDED  consent\n" in out
    assert hashlib.sha256(file.read_bytes()).hexdigest() in out
    assert _run("charter", tmp_path / "none.toml", "--check") == 2
    assert "synth-audit charter" in capsys.readouterr().err
