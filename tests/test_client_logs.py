"""Nothing of a patient is in what a site writes beside its images, says, or sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from site_scenario import OPERATOR, deployed_plan, enrolled, site_values, write_settings
from test_client_service import Coordinator, _question

from synth_client import cli
from synth_client.approval import approve
from synth_client.service import start
from synth_client.site import load_site
from synth_common.flower import Message
from synth_common.terminal import guarded

NAMES = ("Murgatroyd", "Featherstonehaugh", "Wimbledorf", "1931-07-14", "Zebedee")
"""A surname in headers, a first name in file names, an id, a birthday, a folder of a patient."""


def _scans(folder: Path) -> None:
    """Scans whose headers, names, folders and ids hold what must not leave."""
    rng, rows = np.random.default_rng(0), ["file_name,patient_id,site"]
    surname, first, patient, birthday, below = NAMES
    for i in range(24):
        label = "normal" if i % 2 else "lesion"
        name = f"{label}/{below}-{i}/{first}-{birthday}-{i}.png"
        file = folder / name
        file.parent.mkdir(parents=True)
        header = PngInfo()
        header.add_text("PatientName", surname)
        header.add_text("PatientBirthDate", birthday)
        pixels = rng.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(file, pnginfo=header)
        rows.append(f"{name},{patient}-{i},{surname} clinic")
    broken = f"normal/{first}-broken.png"
    (folder / broken).write_bytes(b"\x89PNG\r\n\x1a\n" + surname.encode())
    rows.append(f"{broken},{patient}-99,x")
    rows.append(f"normal/{first}-gone.png,{patient}-98,x")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def _sent(reply: Message) -> bytes:
    """Everything of a reply, as bytes."""
    parts = [repr(reply.metadata.__dict__).encode()]
    if reply.has_error():
        return b"".join([*parts, repr(reply.error).encode()])
    for record in reply.content.array_records.values():
        parts += [name.encode() + array.data for name, array in record.items()]
    return b"".join([*parts, repr(dict(reply.content.config_records)).encode()])


def _written(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the site and its path, but the prepared images and the scans themselves."""
    for path in directory.rglob("*"):
        inside = path.relative_to(directory)
        if path.is_file() and inside.parts[0] not in ("data.npz", "images"):
            yield str(inside), str(inside).encode() + path.read_bytes()


def _mentions(content: bytes) -> list[str]:
    wide = [(name, name.encode("utf-32-le")) for name in NAMES]  # how NumPy keeps text
    return [name for name, spelt in wide if name.encode() in content or spelt in content]


def test_no_name_is_written_said_or_sent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = deployed_plan()
    _, directory = enrolled(tmp_path)
    values = site_values(limits={"rounds_per_day": 2})
    values["data"] |= {
        "nominal_patients": 18,
        "source": {"kind": "folder", "name": "scans", "path": "images"},
    }
    write_settings(directory, values)
    (directory / "images").mkdir()
    _scans(directory / "images")
    home = ["--site", "north", "--home", str(directory.parents[1])]
    lines: list[str] = []
    assert guarded(lambda: cli.app(["prepare", *home])) == 0
    approve(load_site(directory), plan, OPERATOR)
    guarded(lambda: cli.app(["doctor", "--offline", *home]))
    peer = Coordinator(
        _question(plan, 1),
        _question(plan, 2),
        _question(plan, 3),  # refused: the third of a day
        _question(deployed_plan(privacy={"epsilon": 3.0}), 1),  # refused: no such plan
        _question(plan, 3, "evaluate"),
        _question(plan, 0, "query"),
    )
    start(directory, "north", lines.append, peer)
    assert [reply.has_error() for reply in peer.replies] == [False, False, True, True, False, False]
    guarded(lambda: cli.app(["status", "--json", *home]))
    guarded(lambda: cli.app(["budget", *home]))

    images = (directory / "data.npz").read_bytes()
    assert _mentions(images) == [NAMES[0], NAMES[2]]  # the search finds what is there
    files = dict(_written(directory))
    expected = {"events.jsonl", "state.json", "errors.log", "facts.jsonl", "ledger.sqlite"}
    assert expected <= set(files)
    assert any(name.startswith("outbox/") for name in files)
    for name, content in files.items():
        assert _mentions(content) == [], name
    for reply in peer.replies:
        assert _mentions(_sent(reply)) == []
    said = capfd.readouterr()
    assert "images    26 offered, 24 accepted" in said.out
    assert _mentions((said.out + said.err + "".join(lines)).encode()) == []
