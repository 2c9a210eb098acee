"""A finished run becomes a release: its sites' statements checked, its images drawn, all signed.

Works on the run directory of a coordinator and on that of a simulation. In a federation the
statements have to be signed by the keys with which the sites were enrolled; in a simulation one
machine plays every site, and each statement names its own key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from synth_common import wall_clock
from synth_common.charter import Charter, load_charter
from synth_common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnrolmentError,
    PrivacyError,
)
from synth_common.facts import Fact
from synth_common.generators import Generator, build_generator
from synth_common.keys import (
    load_signing_key,
    make_private_folder,
    make_signing_key,
    signing_public,
)
from synth_common.privacy.egress import state_digest
from synth_common.release.bundle import Material, Order, make_bundle, require_new
from synth_common.release.drawing import MOST_IMAGES
from synth_common.release.formats import Format
from synth_common.release.names import SIGNATURE, SIGNER, STATEMENTS, ReleaseName
from synth_common.release.recomputed import understated
from synth_common.release.statement import PrivacyStatement, read_statement
from synth_common.release.sums import digest_of
from synth_common.release.withdrawal import withdraw
from synth_common.reporting.ethics import write_ethics
from synth_common.reporting.files import replace_text
from synth_common.signed_files import read_file
from synth_server.checkpoint import load_latest
from synth_server.finished import FinishedRun, read_finished, require_run
from synth_server.lock import locked
from synth_server.members import read_member
from synth_server.settings import ServerFolder

_LOG = "releases.jsonl"
_KEY = Path("keys") / "sign.key"


@dataclass(frozen=True)
class Request:
    """What is asked for, by what was typed.

    Attributes:
        release: Name and version.
        charter: The federation's charter.
        count: How many images.
        formats: Forms that they come in.
        out: Folder that gets ``NAME-X.Y.Z``.
        key: Ed25519 key that signs; None for the coordinator's own.
        statements: Folder of the sites' statements; None for ``RUN/statements``.
    """

    release: ReleaseName
    charter: Path
    count: int
    formats: frozenset[Format]
    out: Path
    key: Path | None = None
    statements: Path | None = None


@dataclass(frozen=True)
class Published:
    """A bundle, and the folder of public keys that are to be told by another way."""

    bundle: Path
    keys: Path


def publish(run_dir: Path, request: Request) -> Published:
    """Make and sign the release of a finished run.

    Raises:
        ConfigError: ``run_dir`` holds no finished run, a value is impossible, or the version was
            released before.
        PrivacyError: The run has no guarantee that holds, or the statement of a site that took
            part is missing or is another run's; names the site.
        VerificationError: A statement is forged or was edited.
        EnrolmentError: A statement is signed by another key than the site was enrolled with, or
            the signing key cannot be used.
        CheckpointError, DataError, StorageError: As their classes say.
    """
    if not 1 <= request.count <= MOST_IMAGES:
        raise ConfigError(f"--n {request.count}: must be 1 to {MOST_IMAGES}")
    with locked(require_run(run_dir)):
        run = read_finished(run_dir)
        _require_fresh(run_dir, request)
        charter = load_charter(request.charter)
        statements = _statements(run, request.statements or run_dir / STATEMENTS)
        if SIGNER in statements:
            raise ConfigError(
                f"a site is called {SIGNER!r}, which is the name of who signs releases: its key "
                "could be taken for the coordinator's. Enrol it under another name"
            )
        key = _signing_key(run, request.key)
        generator, weights = _generator(run)
        material = Material(
            run_dir=run_dir,
            run_id=run.run_id,
            seed=run.seed,
            facts=run.facts,
            simulation=run.simulation,
            plan=run.plan,
            charter=charter,
            statements={name: (read, text) for name, (read, text, _) in statements.items()},
            generator=generator,
            weights=weights,
            shares=run.shares,
        )
        order = Order(request.release, request.count, request.formats, request.out, (_ethics,))
        bundle = make_bundle(material, order, key)
        _remember(run_dir, request.release, bundle)
        public = {name: signed_by for name, (_, _, signed_by) in statements.items()}
        return Published(bundle, _write_keys(bundle, {**public, SIGNER: signing_public(key)}))


def _ethics(run_dir: Path, charter: Charter, out: Path, more: Sequence[Fact]) -> Path:
    """The ethics report of the run, which knows of the marks on the images, too."""
    return write_ethics(run_dir, charter, out, extra=more)


def take_back(
    run_dir: Path, release: ReleaseName, reason: str, out: Path, given: Path | None
) -> int:
    """Put a release of a run on the signed list at ``out``. Returns how many that names.

    Raises:
        ConfigError: No such version was released from the run; names those that were. Else as
            :func:`synth_common.release.withdrawal.withdraw`.
        EnrolmentError, VerificationError, StorageError: As :func:`publish` and there.
    """
    with locked(require_run(run_dir)):
        made = [f"{entry['name']} {entry['version']}" for entry in _log(run_dir)]
        if f"{release.name} {release.version}" not in made:
            raise ConfigError(
                f"--name {release.name} --version {release.version}: was never released from "
                f"{run_dir}, which released {', '.join(made) or 'nothing'}; nothing was written"
            )
        return withdraw(out, release, reason, _signing_key(read_finished(run_dir), given))


def _statements(run: FinishedRun, folder: Path) -> dict[str, tuple[PrivacyStatement, str, str]]:
    """Every participant's statement: read, as text, and the key that signed it."""
    missing = [name for name in run.sites if not (folder / f"{name}.json").is_file()]
    if missing:
        raise PrivacyError(
            f"no privacy statement of {', '.join(missing)} in {folder}: each site that took part "
            f"makes one with synth-client statement --site NAME --run {run.run_id} --out FILE and "
            f"sends it; put it there as NAME.json"
        )
    found = {}
    for name in run.sites:
        path = folder / f"{name}.json"
        text = read_file(path)
        statement, key = read_statement(text, str(path))
        _require_fitting(run, name, statement)
        if not run.simulation:
            _require_enrolled(run, name, key)
        found[name] = (statement, text, key)
    return found


def _require_fitting(run: FinishedRun, name: str, statement: PrivacyStatement) -> None:
    """Refuse a statement of something else than this site's part in this run."""
    again = f"have site {name} make a new one with synth-client statement --run {run.run_id}"
    pairs = {
        "site": (statement.site, name),
        "run_id": (statement.run_id, run.run_id),
        "simulated": (statement.simulated, run.simulation),
    }
    wrong = [f"{key} = {its!r} against {own!r}" for key, (its, own) in pairs.items() if its != own]
    wrong += statement.differences(run.plan.to_json())
    if wrong:
        raise PrivacyError(
            f"the statement of {name} does not fit the run (statement against run): "
            f"{'; '.join(wrong)}; {again}"
        )
    spent = run.spent.get(name, 0.0)
    if statement.epsilon_all_runs < spent * (1 - 1e-9):
        raise PrivacyError(
            f"the statement of {name} says that all its runs cost epsilon "
            f"{statement.epsilon_all_runs:.6g}, but during this run its ledger said {spent:.6g}: "
            f"it is of an older copy of the ledger; {again}"
        )
    if (less := understated(statement)) is not None:
        raise PrivacyError(f"the statement of {name} {less}; {again}")


def _require_enrolled(run: FinishedRun, name: str, key: str) -> None:
    """Refuse a signature by another key than the site has here."""
    folder = ServerFolder(run.directory.parent)
    if not folder.settings.is_file():
        raise ConfigError(
            f"{run.directory} is no simulation, and {run.directory.parent} holds no server.toml: "
            "the keys with which the sites were enrolled are needed; keep the run in its "
            "coordinator's folder"
        )
    member = read_member(folder, name)
    if member.revoked is not None:
        raise EnrolmentError(
            f"{member.refusal()}, so that a statement under its key shows nothing; renew it with "
            f"new keys (synth-server renew {folder.path} --site {name}), and have it sign again"
        )
    if member.keys.signing != key:
        raise EnrolmentError(
            f"the statement of {name} is signed by another key than the site was enrolled with: it "
            "is forged, or older than the site's keys; have the site make it again"
        )


def _signing_key(run: FinishedRun, given: Path | None) -> Ed25519PrivateKey:
    """The key that was given, the coordinator's own, or that of a simulation, made if missing."""
    if given is not None:
        return load_signing_key(given)
    if not run.simulation:
        return load_signing_key(run.directory.parent / _KEY)
    path = run.directory / _KEY
    make_private_folder(path.parent)
    return load_signing_key(path) if path.exists() else make_signing_key(path)


def _generator(run: FinishedRun) -> tuple[Generator, str]:
    """The run's generator with its final weights, and their SHA-256."""
    plan = run.plan
    checkpoint = load_latest(run.directory / "checkpoints", run.run_id, plan.digest())
    if checkpoint is None:
        raise CheckpointError(f"{run.directory} has no checkpoint, so there is no generator")
    generator = build_generator(plan.generator, seed=0, pretraining=plan.pretraining)
    generator.load_shared_state(checkpoint.state)
    generator.eval()
    return generator, state_digest(checkpoint.state)


def _require_fresh(run_dir: Path, request: Request) -> None:
    """Refuse a version that was released from this run before, wherever its folder is now."""
    require_new(request.out / request.release.folder)
    for entry in _log(run_dir):
        if (entry["name"], entry["version"]) == (request.release.name, request.release.version):
            raise ConfigError(
                f"{request.release} was released on {str(entry['made'])[:10]}, and a version is "
                "never changed: give the next --version"
            )


def _log(run_dir: Path) -> list[dict[str, Any]]:
    """What was released from a run."""
    path = run_dir / _LOG
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as err:
        raise DataError(f"{path} is damaged ({err}); restore it from a backup") from err


def _remember(run_dir: Path, release: ReleaseName, bundle: Path) -> None:
    """Write down that a version is taken."""
    entry = {
        "name": release.name,
        "version": release.version,
        "made": wall_clock.now().isoformat(),
        "sha256": digest_of(bundle / SIGNATURE),
    }
    lines = "".join(json.dumps(line, sort_keys=True) + "\n" for line in [*_log(run_dir), entry])
    replace_text(run_dir / _LOG, lines)


def _write_keys(bundle: Path, public: Mapping[str, str]) -> Path:
    """The public keys beside the bundle, for who wants to check it; never inside it."""
    folder = bundle.with_name(f"{bundle.name}-keys")
    folder.mkdir(exist_ok=True)
    for name, key in public.items():
        replace_text(folder / f"{name}.pub", f"{key}\n")
    return folder
