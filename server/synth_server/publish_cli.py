"""``synth-server release`` and ``withdraw``: what leaves, and what is taken back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synth_common.errors import ConfigError

if TYPE_CHECKING:
    from synth_common.release.formats import Format

RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory, of a coordinator or of synth-sim."),
]
NameOption = Annotated[str, typer.Option("--name", help="Name of the release.")]
VersionOption = Annotated[
    str, typer.Option("--version", metavar="X.Y.Z", help="Its version, as semver.org has it.")
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key",
        help="Ed25519 key that signs, PEM; default: keys/sign.key of the coordinator, or of the "
        "simulation (made if missing).",
    ),
]


def release(
    run: RunArgument,
    name: NameOption,
    version: VersionOption,
    charter: Annotated[Path, typer.Option("--charter", help="The federation's charter, TOML.")],
    n: Annotated[int, typer.Option("--n", help="How many images.")],
    formats: Annotated[
        str, typer.Option("--formats", help="Any of png, npz, dicom; png is always made.")
    ] = "png",
    out: Annotated[
        Path, typer.Option("--out", help="Folder that gets NAME-X.Y.Z and NAME-X.Y.Z-keys.")
    ] = Path("releases"),
    key: KeyOption = None,
    statements: Annotated[
        Path | None,
        typer.Option(
            "--statements",
            help="Folder of the sites' privacy statements, SITE.json; default: RUN/statements.",
        ),
    ] = None,
) -> None:
    """Draw images from the generator of RUN and publish them with their papers, signed.

    Needs the privacy statement of every site that took part (synth-client statement). A version
    is never written over. Check the result with synth-audit verify.
    """
    from synth_common.release.names import SIGNER, ReleaseName
    from synth_server.publish import Request, publish

    named = ReleaseName(name, version)
    made = publish(run, Request(named, charter, n, _formats(formats), out, key, statements))
    typer.echo(f"{n} images: {made.bundle}")
    typer.echo(f"public keys of all who signed: {made.keys}")
    typer.echo(
        "  hand them out by another way than the bundle: who can replace one can replace both"
    )
    typer.echo(f"  ({SIGNER}.pub is the coordinator's, the others are the sites')")
    typer.echo(f"check: synth-audit verify {made.bundle} --keys {made.keys}")


def withdraw(
    run: RunArgument,
    name: NameOption,
    version: VersionOption,
    reason: Annotated[str, typer.Option("--reason", help="Why; everybody who checks is told it.")],
    out: Annotated[
        Path, typer.Option("--out", help="The list of withdrawn releases; it is added to.")
    ] = Path("releases/withdrawn.json"),
    key: KeyOption = None,
) -> None:
    """Put a release of RUN on the signed list of withdrawn ones.

    Publish the list where users of the release look: synth-audit verify --withdrawn reads it.
    """
    from synth_common.release.names import ReleaseName
    from synth_server.publish import take_back

    count = take_back(run, ReleaseName(name, version), reason, out, key)
    typer.echo(f"withdrawn: {name} {version}; {out} names {count}")


def _formats(text: str) -> frozenset[Format]:
    """The forms that a list with commas names."""
    from synth_common.release.formats import FORMATS

    named = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in named if part not in FORMATS]
    if unknown:
        raise ConfigError(f"--formats {text!r}: {unknown[0]!r} is none of {', '.join(FORMATS)}")
    return frozenset(form for form in FORMATS if form == "png" or form in named)
