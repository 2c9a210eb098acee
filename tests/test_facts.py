"""The log of facts: a closed catalogue, appended whole, readable after any crash."""

from __future__ import annotations

import math

import pytest

from synth_common.errors import ConfigError, DataError, StorageError
from synth_common.facts import Fact, FactLog, read_facts


def _fact(value: object) -> Fact:
    return Fact("run.seed", value, "public", "tests")


def test_facts_come_back_in_order_and_infinity_as_a_word(tmp_path):
    log = FactLog(tmp_path / "deep" / "facts.jsonl")
    log.append(_fact(1), _fact(math.inf))
    log.append(_fact({"a": (1, 2.5)}))
    assert [f.value for f in read_facts(log.path)] == [1, "inf", {"a": [1, 2.5]}]


def test_a_line_torn_by_a_crash_neither_hides_nor_spoils_the_next(tmp_path):
    log = FactLog(tmp_path / "facts.jsonl")
    log.append(_fact(1))
    with log.path.open("a") as handle:
        handle.write('{"name": "run.se')
    assert [f.value for f in read_facts(log.path)] == [1]
    log.append(_fact(2))
    assert [f.value for f in read_facts(log.path)] == [1, 2]


def test_a_broken_line_elsewhere_is_named(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text('nonsense\n{"also": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        list(read_facts(path))


def test_names_outside_the_catalogue_and_values_outside_json_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="catalogue"):
        Fact("privacy.epsilom", 1, "public", "tests")
    with pytest.raises(ConfigError, match="cannot hold"):
        FactLog(tmp_path / "f").append(_fact(object()))


def test_a_disk_that_refuses_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        FactLog(tmp_path / "file" / "facts.jsonl").append(_fact(1))
