"""``synth-client doctor``: everything that would make the first round fail, before it does.

Nothing is written, charged or sent but a signed timestamp: no ledger is opened for writing,
and the private step is rehearsed on random pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from synth_client.budget import statement
from synth_client.cost import cost_of, fits
from synth_client.doctor_network import examine_network, skip_network
from synth_client.enrol import load_node_key, load_signing_key
from synth_client.findings import Examination, Finding, Symptom
from synth_client.kit import load_kit
from synth_client.prepare import site_budget
from synth_client.settings import SiteSettings, load_settings
from synth_client.site import Site, load_site
from synth_common import wall_clock
from synth_common.certificates import WARN_DAYS
from synth_common.facts import Fact, read_facts
from synth_common.privacy.ledger import Ledger

if TYPE_CHECKING:
    from synth_common.enrolment import Kit
    from synth_common.plan import Plan

_OTHERS = 0o077
_PRIVATE = ("data.npz", "ledger.sqlite", "facts.jsonl", "errors.log", "keys", "outbox", "kept")
_GIGABYTE = 1 << 30
_KEPT_COPIES = 20
"""Replies, moments and their temporary files, of two rounds: so many models at the very most."""
_SLOW = 0.8
"""A round that takes this share of the coordinator's patience is worth a word."""


class _Examined:
    """What is examined: a site's parts, each read once and when it is first asked for."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name

    @cached_property
    def settings(self) -> SiteSettings:
        return load_settings(self.directory, self.name)

    @cached_property
    def kit(self) -> Kit:
        return load_kit(self.directory)

    @property
    def plan(self) -> Plan:
        return self.kit.plan

    @cached_property
    def site(self) -> Site:
        return load_site(self.directory)

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger.sqlite"


def examine(directory: Path, name: str, *, network: bool = True) -> list[Finding]:
    """Look at everything that a round needs.

    Args:
        directory: Of the site.
        name: The site.
        network: Look at the way to the coordinator, too.

    Returns:
        One finding per check, in an order in which they are best mended.
    """
    it, examination = _Examined(directory, name), Examination()
    check, again = examination.check, f"synth-client prepare --site {name} --replace"
    check("settings", lambda: _settings(it), "correct site.toml; its keys: docs/reference/site.md")
    check("files", lambda: _files(it), "close what is open to others with chmod")
    check("keys", lambda: _keys(it), f"see above; new ones: synth-client init --site {name}")
    check("enrolment", lambda: _enrolment(it), f"synth-client accept KIT --site {name}")
    check("disk", lambda: _disk(it), needs=["enrolment"])
    check("device", lambda: _device(it), needs=["settings", "enrolment"])
    check("data", lambda: _data(it), again, needs=["settings"])
    check("ledger", lambda: _ledger(it), "restore ledger.sqlite and ledger.head from a backup")
    check("plan", lambda: _plan(it), needs=["enrolment", "ledger", "data"])
    raising = f"synth-client budget --site {name} --set EPSILON --reason TEXT"
    check("budget", lambda: _budget(it), raising, needs=["enrolment", "ledger", "data", "settings"])
    check(
        "private step",
        lambda: _step(it),
        "correct compute.device in site.toml, or reinstall",
        needs=["settings", "enrolment", "device"],
    )
    _network(it, examination, network)
    return examination.findings


def _network(it: _Examined, examination: Examination, wanted: bool) -> None:
    """The way to the coordinator, as far as it can be looked at."""
    from synth_client.service import coordinator_of

    missing = [n for n in ("settings", "keys", "enrolment") if not examination.passed(n)]
    if not wanted:
        skip_network(examination, "--offline was given")
    elif missing:
        skip_network(examination, f"needs {' and '.join(missing)}, see there")
    else:
        coordinator = coordinator_of(it.directory, it.settings, it.kit)
        examine_network(examination, coordinator, load_node_key(it.directory))


def _settings(it: _Examined) -> str:
    source = it.settings.data.source
    return f"site.toml can be read; source {source.name!r} ({source.kind})"


def _files(it: _Examined) -> str:
    """What others than the owner can read or enter."""
    paths = [it.directory, *(it.directory / name for name in _PRIVATE)]
    paths += sorted((it.directory / "keys").glob("*.key"))
    there = [path for path in paths if path.exists()]
    open_ = [path for path in there if path.stat().st_mode & _OTHERS]
    closed = it.directory not in open_  # nobody comes past a closed folder
    bad = [path for path in open_ if not closed or path.suffix == ".key" or path.name == "keys"]
    if bad:
        commands = "; ".join(f"chmod {700 if path.is_dir() else 600} {path}" for path in bad)
        raise Symptom(f"others can read {', '.join(path.name for path in bad)}", commands)
    return f"{it.directory} is closed to others"


def _keys(it: _Examined) -> str:
    load_node_key(it.directory)
    load_signing_key(it.directory)
    return "node.key and sign.key can be used, by their owner only"


def _enrolment(it: _Examined) -> str:
    own = it.kit.member(it.name)
    if own is None:
        raise Symptom(
            f"the kit does not name site {it.name}", "ask the coordinator's IT for a new kit"
        )
    left = (own.valid_until - wall_clock.now()).days
    found = (
        f"in {it.kit.federation}, kit {it.kit.serial}, server {it.kit.address}, until "
        f"{own.valid_until:%Y-%m-%d}"
    )
    fix = f"synth-client init --site {it.name}, and send the fresh request to the coordinator's IT"
    if own.valid_until < wall_clock.now():
        raise Symptom(f"{found}: EXPIRED", fix)
    if left < WARN_DAYS:
        raise Symptom(f"{found}: {left} days left", fix, "warning")
    return found


def _disk(it: _Examined) -> str:
    """Room for the replies and moments that a site keeps."""
    needed = max(_GIGABYTE, _KEPT_COPIES * _model_bytes(it.plan))
    free = shutil.disk_usage(it.directory).free
    found = f"{free / _GIGABYTE:.1f} GiB free at {it.directory}, {needed / _GIGABYTE:.1f} needed"
    if free < needed:
        raise Symptom(found, "free space, or move the site's folder (--home) to a larger disk")
    return found


def _model_bytes(plan: Plan) -> int:
    """Size of what travels in one message."""
    from synth_common.generators import build_generator

    state = build_generator(plan.generator, 0, pretraining=plan.pretraining).shared_state()
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _device(it: _Examined) -> str:
    import torch

    chosen = it.settings.compute.device
    wanted = it.plan.training.device if chosen == "auto" else chosen
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / _GIGABYTE
        there = f"GPU {torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
    else:
        there = f"no GPU; {torch.get_num_threads()} processor threads"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise Symptom(
            f"{there}, but 'cuda' is asked for",
            "set compute.device = 'cpu' in site.toml, or repair the GPU's driver (nvidia-smi)",
        )
    return f"{there}; trains on {wanted}"


def _data(it: _Examined) -> str:
    site, limits = it.site, it.settings.limits
    limits.require_patients(site.train.unit_count())
    declared = it.settings.data.nominal_patients
    if declared != site.nominal_patients:
        raise Symptom(
            f"data.nominal_patients = {declared} in site.toml, but the site was prepared with "
            f"{site.nominal_patients}",
            f"synth-client prepare --site {it.name} --replace",
        )
    kinds = "patients" if site.train.patient_ids is not None else "images, no patients known"
    return (
        f"{site.train.unit_count()} {kinds} to train on, {site.holdout.unit_count()} held out"
        f"{_rejects(it)}"
    )


def _rejects(it: _Examined) -> str:
    """What was set aside when the data were prepared; empty for nothing."""
    reports = [fact.value for fact in _facts(it) if fact.name == "data.intake"]
    aside = reports[-1]["set_aside"] if reports else {}
    told = ", ".join(f"{count} {why}" for why, count in aside.items())
    return f"; set aside: {told}" if told else ""


def _facts(it: _Examined) -> Iterator[Fact]:
    path = it.directory / "facts.jsonl"
    return read_facts(path) if path.exists() else iter(())


def _ledger(it: _Examined) -> str:
    with Ledger.read(it.ledger) as ledger:
        holds, wanted = ledger.budget, site_budget(it.settings)
        found = f"{len(ledger.entries)} entries, verified; head {ledger.head[:16]}"
    if holds != wanted:
        raise Symptom(
            f"{found}; its budget is epsilon {holds.epsilon:g} at delta {holds.delta:g}, and in "
            f"site.toml it is epsilon {wanted.epsilon:g} at delta {wanted.delta:g}",
            "the ledger's holds; correct site.toml, or change it with synth-client budget --set",
            "warning",
        )
    return found


def _plan(it: _Examined) -> str:
    """Whether the operator approved what the coordinator's kit holds, and the site can keep it."""
    from synth_client.approval import require_approved, require_keepable
    from synth_common.errors import PlanError

    with Ledger.read(it.ledger) as ledger:
        require_keepable(it.site, it.plan, ledger.budget)
        try:
            require_approved(ledger, it.plan)
        except PlanError as err:
            raise Symptom(
                str(err),
                f"read {it.directory / 'plan.json'}, then synth-client plan approve "
                f"{it.directory / 'plan.json'} --site {it.name} --reason TEXT",
            ) from err
    return f"{it.plan.digest()[:16]} of the kit is approved"


def _budget(it: _Examined) -> str:
    """Whether the budget bears the plan, or what is left of it."""
    account = statement(it.directory)
    outlook = account.outlook
    begun = outlook is not None and outlook.digest == it.plan.digest() and account.runs
    if begun and outlook is not None:
        found = f"epsilon {account.remaining:.3f} left, for {outlook.rounds_left} more rounds"
        if not outlook.rounds_left:
            raise Symptom(found, "raise it: synth-client budget --set, with a reason")
        return found
    found = cost_of(it.plan, it.directory)
    if not fits(it.plan, it.directory):
        raise Symptom(found, "raise it (synth-client budget --set), or ask for a cheaper plan")
    return found


def _step(it: _Examined) -> str:
    """The plan's private step on random pictures, and how long a round would take."""
    from synth_client.rehearsal import rehearse

    done = rehearse(it.plan, it.settings.compute.device)
    if done.round_seconds is None:
        return f"a release of {done.patients} random patients took {done.seconds:.2f} s"
    patience = it.plan.federation.round_timeout_s
    found = (
        f"{done.seconds:.2f} s on {done.device} with {done.patients} random patients, so a round "
        f"takes about {done.round_seconds:.0f} s of the {patience:.0f} that the plan allows"
    )
    if done.round_seconds > _SLOW * patience:
        late = done.round_seconds > patience
        raise Symptom(
            found,
            "use a GPU or more threads ([compute] in site.toml), or agree on a plan with a longer "
            "federation.round_timeout_s",
            "problem" if late else "warning",
        )
    return found
