"""A site's members and non-members as files that an audit reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sites import small_site
from typer.testing import CliRunner

from synth_client.cli import app
from synth_client.site import save_site
from synth_common.images.preprocess import Target
from synth_common.images.sources import NpzSource, load_source


def test_the_sets_are_the_sites_train_and_holdout_and_private(tmp_path: Path) -> None:
    site = small_site(tmp_path / "sites")
    save_site(site)
    out = tmp_path / "sets"
    call = ["audit-sets", "--site", "north", "--home", str(tmp_path), "--out", str(out)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "delete them" in done.output
    for name, images in (("members", site.train), ("nonmembers", site.holdout)):
        path = out / f"{name}.npz"
        assert path.stat().st_mode & 0o777 == 0o600
        config = NpzSource(kind="npz", name=name, path=path, licence="-")
        target = Target(size=28, channels=1, classes=images.class_names)
        again = load_source(config, target, None).images
        np.testing.assert_allclose(again.images, images.images, atol=1 / 255)
        assert again.patient_ids is not None
        assert images.patient_ids is not None
        assert len(set(again.patient_ids)) == len(set(images.patient_ids))
        with np.load(path) as archive:
            assert set(archive["site"]) == {"north"}
    again_call = CliRunner().invoke(app, call)
    assert again_call.exit_code != 0


@pytest.mark.parametrize("name", ["members.npz", "nonmembers.npz"])
def test_nothing_is_written_over(tmp_path: Path, name: str) -> None:
    save_site(small_site(tmp_path / "sites"))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / name).write_bytes(b"mine")
    call = ["audit-sets", "--site", "north", "--home", str(tmp_path)]
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "sets")])
    assert done.exit_code != 0
    assert (tmp_path / "sets" / name).read_bytes() == b"mine"
    assert len(list((tmp_path / "sets").iterdir())) == 1
