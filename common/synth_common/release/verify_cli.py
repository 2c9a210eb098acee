"""``synth-audit verify`` and ``metadata``: check a release, and look for identifiers in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synth_common.errors import IdentifierError, UnknownSignerError, VerificationError
from synth_common.terminal import printable

if TYPE_CHECKING:
    from synth_common.release.verdict import Verdict

_LONGEST = 100
JsonOption = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The folder of a release, NAME-X.Y.Z.")
    ],
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            help="Folder of the public keys that you were told by another way: SITE.pub of every "
            "site, and release.pub of who released it.",
        ),
    ] = None,
    withdrawn: Annotated[
        Path | None,
        typer.Option("--withdrawn", help="The list of withdrawn releases, fetched anew."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a release offline: every file, every signature, every mark; name what is wrong.

    Ends with 0 if all of it is as it was signed, by the keys in --keys; with 24 if anything is
    wrong; with 25 without --keys: then nothing is wrong, but who signed is not known.
    """
    from synth_common.release.verdict import read_keys
    from synth_common.release.verify import verify_bundle

    verdict = verify_bundle(bundle, None if keys is None else read_keys(keys), withdrawn)
    if as_json:
        typer.echo(json.dumps({**asdict(verdict), "whole": verdict.whole}, indent=2))
    else:
        for line in _lines(verdict):
            typer.echo(printable(line))
    if not verdict.whole:
        raise VerificationError(
            f"{bundle}: {len(verdict.problems)} problem(s), the first: "
            f"{printable(verdict.problems[0].text)}. "
            "Do not use it before that is explained: get the release or the keys again, and ask "
            "who published it"
        )
    if keys is None:
        raise UnknownSignerError(
            f"{bundle} is as it was signed, but who signed it is not known: anybody could have "
            "made it. Get the public keys from the sites and the coordinator, and give --keys"
        )


def _lines(verdict: Verdict) -> list[str]:
    """The verdict for reading."""
    from synth_common.release.dsse import key_id

    lines = [f"PROBLEM  {p.code}: {p.text}" for p in verdict.problems]
    if verdict.release:
        marks = f"{verdict.images} PNG files, all marked" if verdict.whole else ""
        lines.append(f"release  {verdict.release}{'; ' if marks else ''}{marks}")
    if verdict.simulation:
        lines.append("         A SIMULATION: one machine played every hospital; no release")
    for name, epsilon in verdict.epsilons.items():
        lines.append(f"site     {name} states epsilon {epsilon:.4f}")
    for name, key in verdict.signers.items():
        state = "known" if verdict.known else "NOT KNOWN"
        lines.append(f"key      {state:<9} {name}  SHA-256 {key_id(key)}")
    lines += [
        f"silent   {name} signed nothing here; ask it whether it took part"
        for name in verdict.silent
    ]
    if verdict.whole:
        lines.append("whole    every file is as it was signed")
    return lines


def metadata(
    target: Annotated[
        Path, typer.Argument(metavar="S", help="A file, or a folder with all that is in it.")
    ],
    allow: Annotated[
        list[str],
        typer.Option("--allow", help="A value that you looked at and found harmless; repeatable."),
    ] = [],  # noqa: B006 - typer copies it
    pixels: Annotated[
        bool, typer.Option("--pixels/--no-pixels", help="Look for burned-in text, too.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Look for identifiers of people, places and devices in images and their names.

    Reads text chunks, EXIF and XMP of PNG, JPEG and TIFF, headers of DICOM, file names, and marks
    near the border that look like burned-in text. Ends with 26 if anything was found. What is
    printed may identify somebody.
    """
    from synth_common.release.metadata import scan

    found = scan(target, allow, pixels)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        for one in found.findings:
            line = f"{one.file}: {one.kind} in {one.place}: {_cut(one.value)}"
            typer.echo(printable(line))
        typer.echo(f"looked into: {_counts(found.scanned)}")
        typer.echo(f"names only: {_counts(found.skipped)}")
    if found.findings:
        raise IdentifierError(
            f"{target}: {len(found.findings)} findings in {len({f.file for f in found.findings})} "
            "files; look at each. What is harmless can be given with --allow"
        )


def _cut(value: str) -> str:
    """A value on one line, cut where it is long."""
    line = " ".join(value.split())
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."


def _counts(kinds: Mapping[str, int]) -> str:
    """How many files of each kind."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"


def add_to(app: typer.Typer) -> None:
    """Make them commands of ``app``."""
    app.command()(verify)
    app.command()(metadata)
