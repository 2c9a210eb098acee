"""Files for a rehearsal: what is dealt out is what a simulated site would have."""

from __future__ import annotations

import numpy as np
import pytest
from simulation_scenario import write_tiny
from typer.testing import CliRunner

from synth_client.holdout import image_target
from synth_common.errors import ConfigError
from synth_common.images.npz import NpzSource
from synth_common.images.sources import load_source
from synth_sim.cli import app
from synth_sim.dealing import deal_files
from synth_sim.partition import deal
from synth_sim.prepare import load_private
from synth_sim.scenario import load_scenario


def test_a_dealt_file_reads_as_the_sites_images(tmp_path):
    scenario = load_scenario(str(write_tiny(tmp_path, 3)))
    wanted = deal(load_private(scenario), scenario.partition, scenario.seed)
    seen: set[str] = set()
    for path, _ in deal_files(scenario, tmp_path / "out"):
        source = NpzSource(name="dealt", path=path)
        found = load_source(source, image_target(scenario.generator), None).images
        own = wanted[path.stem]
        assert path.stat().st_mode & 0o077 == 0
        assert found.patient_ids is not None
        assert own.patient_ids is not None
        np.testing.assert_array_equal(found.labels, own.labels)
        np.testing.assert_array_equal(found.patient_ids, own.patient_ids)
        np.testing.assert_allclose(found.images, own.images, atol=0.5 / 255 + 1e-6)
        assert not seen & set(found.patient_ids.tolist())
        seen |= set(found.patient_ids.tolist())


def test_nothing_is_written_over(tmp_path):
    path = write_tiny(tmp_path, 3)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["deal", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.output.count("patients") == 3
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(ConfigError, match=r"--out .*\.npz exists"):
        list(deal_files(load_scenario(str(path)), out))
    assert {file: file.read_bytes() for file in out.iterdir()} == before
