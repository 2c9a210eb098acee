"""The policy of an audit: strict, packaged whole, and never a gate on the closest record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from synth_common.audit.audit_facts import _shown
from synth_common.audit.gates import GateResult, verdict
from synth_common.audit.policy import AuditPolicy, Gate, read_policy
from synth_common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/reference/audit-policy.md").read_text(encoding="utf-8")


def _read(folder: Path, text: str) -> AuditPolicy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path).policy


def test_the_packaged_policy_serves_and_is_known_by_its_bytes() -> None:
    written = read_policy(None)
    file = ROOT / "common/synth_common/audit/default-policy.toml"
    assert written.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {g.view for g in written.policy.gates if g.required} == {"images"}


@pytest.mark.parametrize(
    "measure",
    ["dcr", "distance-to-closest-record", "DCR ratio", "nndr", "distance_to_closest_record"],
)
def test_the_closest_record_is_refused_by_name(tmp_path: Path, measure: str) -> None:
    text = f'name = "p"\n[[gates]]\nmeasure = "{measure}"\nlimit = 0.5\n'
    with pytest.raises(ConfigError, match=r"closest record.*never a gate.*near-copies"):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "p"\n', "gates: required"),
        ('name = "p"\ngates = []\n', "at least 1"),
        (
            'name = "Anonymity, strict"\n[[gates]]\nmeasure = "data-copying"\n',
            "name = 'Anonymity, strict': says \"Anonymity\": .*write what was",
        ),
        ('name = "p"\nalfa = 0.1\n[[gates]]\nmeasure = "data-copying"\n', "did you mean alpha"),
        ('name = "p"\n[[gates]]\nmeasure = "auc"\n', "needs a limit"),
        ('name = "p"\n[[gates]]\nmeasure = "auc"\nlimit = 6.0\n', "above 1"),
        ('name = "p"\n[[gates]]\nmeasure = "data-copying"\nlimit = 1.0\n', "takes no limit"),
        (
            'name = "p"\n[[gates]]\nmeasure = "near-copies"\nview = "model"\nlimit = 0.0\n',
            "view images only",
        ),
        ("name = ", "not TOML"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _read(tmp_path, text)


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_policy(tmp_path / "none.toml")


def test_every_key_and_measure_is_documented() -> None:
    from typing import get_args

    from synth_common.audit.policy import Measure
    from synth_common.validation import known_keys

    for name in (*known_keys(AuditPolicy), *Gate.model_fields, *get_args(Measure)):
        leaf = name if name in ("stated", "alike") else f"`{name}`"
        assert leaf in PAGE, name


def _result(outcome: str, required: bool = True) -> GateResult:
    gate = Gate(measure="data-copying", required=required)
    return GateResult(gate, outcome, None, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "fail", "not resolvable"], "fail"),
        (["pass", "not run", "not resolvable"], "not resolvable"),
        (["pass", "not run"], "not run"),
    ],
)
def test_the_verdict_is_the_worst_gates(outcomes: list[str], expected: str) -> None:
    assert verdict([_result(o) for o in outcomes]) == expected


def test_an_optional_gate_may_be_left_out_but_not_fail() -> None:
    assert verdict([_result("pass"), _result("not run", required=False)]) == "pass"
    assert verdict([_result("pass"), _result("fail", required=False)]) == "fail"
    open_gate = _result("not resolvable", required=False)
    assert verdict([_result("pass"), open_gate]) == "not resolvable"


def test_an_audit_that_ran_nothing_passes_nothing() -> None:
    assert verdict([_result("not run", required=False)]) == "not run"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("releases/lungs-1.0.0/images", "lungs-1.0.0/images"),
        ("sets/members.npz", "members.npz"),
        ("/images", "/images"),
    ],
)
def test_a_set_is_shown_by_a_name_that_tells_which_it_is(path: str, shown: str) -> None:
    assert _shown(Path(path)) == shown
