"""From sources to hospitals: load, deal, shift, split, and give every site its directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synth_client.approval import accept
from synth_client.enrol import agree, make_key
from synth_client.holdout import Holdout, image_target, require_unit, split_images, split_value
from synth_client.site import Site, save_site
from synth_common.errors import ConfigError, DataError
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet
from synth_common.images.sources import SourceConfig, load_source
from synth_common.images.split import own_split
from synth_common.privacy.ledger import Budget, Decision
from synth_common.randomness import derive_seed
from synth_sim.partition import SiteShare, deal
from synth_sim.scanner import apply
from synth_sim.scenario import ROOT_VARIABLE, Scenario

_SOURCE = "synth_sim.prepare.prepare_sites"


def site_directories(scenario: Scenario, out: Path) -> dict[str, Path]:
    """Where each site of the scenario lives below the run directory."""
    return {site.name: (out / "sites" / site.name).resolve() for site in scenario.partition.sites}


def require_data(scenario: Scenario) -> None:
    """Refuse a scenario whose images are not where it says, before anything is made of it.

    Raises:
        DataError: No data root, or a source or the reference is missing; names the parameter.
    """
    root = scenario.data_root()
    reference = scenario.data.reference
    for config in (*scenario.data.sources, *([] if reference is None else [reference])):
        _refuse_rootless(config, root)
        _refuse_missing(config, root, scenario)


def prepare_sites(scenario: Scenario, out: Path) -> list[Fact]:
    """Load every source, deal patients to sites and write the sites' directories.

    Args:
        scenario: What to prepare.
        out: Run directory; sites are made in ``out/sites``.

    Returns:
        The ``data.*`` facts.

    Raises:
        DataError: A source is missing or cannot be used.
        ConfigError: The partition does not fit the sources.
        PrivacyError: The unit is the patient and a source has no patient ids.
        StorageError: The disk refuses.
    """
    root = scenario.data_root()
    facts = _shape_facts(scenario)
    sources: dict[str, ImageSet] = {}
    for config in scenario.data.sources:
        _refuse_repeated(config.name, sources)
        _refuse_rootless(config, root)
        intake = load_source(config, image_target(scenario.generator), root)
        require_unit(intake.images, scenario.privacy.unit, config.name)
        if scenario.data.holdout == "split":
            # Before a site is made: what crosses here would cross at a site.
            own_split(intake.images, f"source {config.name!r}")
        sources[config.name] = intake.images
        detail = {"source": config.name}
        facts += [
            Fact("data.licence", config.licence, "public", _SOURCE, detail=detail),
            Fact(
                "data.intake",
                intake.report.as_fact_value(),
                "site-local",
                _SOURCE,
                detail=detail,
            ),
        ]
    dealt = deal(sources, scenario.partition, scenario.seed)
    for share in scenario.partition.sites:
        facts += _prepare_site(scenario, share, dealt[share.name], out)
    if scenario.privacy.trust_model == "secure-aggregation":
        enrol_sites(site_directories(scenario, out))
    return facts


def load_reference(scenario: Scenario) -> ImageSet | None:
    """The scenario's public reference images, or None."""
    config = scenario.data.reference
    if config is None:
        return None
    root = scenario.data_root()
    _refuse_rootless(config, root)
    return load_source(config, image_target(scenario.generator), root).images


def load_private(scenario: Scenario) -> dict[str, ImageSet]:
    """Every private source by name. Raises DataError for one that cannot be used."""
    root = scenario.data_root()
    for config in scenario.data.sources:
        _refuse_rootless(config, root)
    return {
        config.name: load_source(config, image_target(scenario.generator), root).images
        for config in scenario.data.sources
    }


def _refuse_repeated(name: str, sources: Mapping[str, ImageSet]) -> None:
    if name in sources:
        raise ConfigError(f"data.sources: two sources are called {name!r}; names must differ")


def _refuse_rootless(config: SourceConfig, root: Path | None) -> None:
    """A relative path without a root is the commonest mistake: say both ways out."""
    path = getattr(config, "path", None)
    if path is not None and root is None and not path.expanduser().is_absolute():
        raise DataError(
            f"data.root is not set, and neither is {ROOT_VARIABLE}: source {config.name!r} reads "
            f"{str(path)!r} from that folder. Add --set data.root=FOLDER, or set {ROOT_VARIABLE}; "
            "docs/reference/data.md says what the folder holds"
        )


def _refuse_missing(config: SourceConfig, root: Path | None, scenario: Scenario) -> None:
    """A file or folder that is not there, by the parameter that leads to it."""
    path = getattr(config, "path", None)
    if path is None:
        return
    if (whole := path.expanduser()).is_absolute():
        if not whole.exists():
            raise DataError(
                f"source {config.name!r}: path = {str(path)!r} does not exist; mend the path"
            )
    elif root is not None and not (root / whole).exists():
        origin = "data.root" if scenario.data.root else ROOT_VARIABLE
        raise DataError(
            f"{origin} = {str(root)!r} does not hold {str(path)!r}, which source {config.name!r} "
            "reads. Choose another folder by --set data.root=FOLDER; docs/reference/data.md says "
            "what it holds"
        )


def _prepare_site(scenario: Scenario, share: SiteShare, images: ImageSet, out: Path) -> list[Fact]:
    """Shift, split and save one site; the facts about it."""
    seed, name = scenario.seed, share.name
    if share.scanner is not None:
        images = apply(share.scanner, images, derive_seed(seed, "scanner", name))
    kept = Holdout(
        scenario.data.holdout, scenario.data.holdout_share, derive_seed(seed, "split", name)
    )
    train, holdout = split_images(images, kept, scenario.privacy.unit, f"site {name!r}")
    site = Site(
        name=name,
        directory=site_directories(scenario, out)[name],
        train=train,
        holdout=holdout,
        nominal_patients=share.nominal_patients,
        seed=derive_seed(seed, "site", name),
        simulated=True,
    )
    save_site(site)
    _play_operator(site, scenario, share.budget_epsilon or scenario.privacy.epsilon)
    facts = [
        Fact("data.source", _source_value(scenario, share), "public", _SOURCE, site=name),
        Fact("data.split", split_value(train, holdout), "site-local", _SOURCE, site=name),
    ]
    if share.scanner is not None:
        shift = share.scanner.as_fact_value()
        facts.append(Fact("data.scanner_shift", shift, "public", _SOURCE, site=name))
    return facts


def _play_operator(site: Site, scenario: Scenario, budget_epsilon: float) -> None:
    """Decide what a hospital's operator would: set the budget, approve the plan."""
    terms = scenario.privacy
    budget = Budget(budget_epsilon, terms.delta, terms.accountant, terms.unit)
    decision = Decision("synth-sim", f"simulated site of scenario {scenario.name}")
    accept(site.ledger_path, budget, scenario.plan, decision)


def enrol_sites(directories: Mapping[str, Path]) -> None:
    """Have every site make its key, and tell it the others' public ones, as operators would."""
    public = {name: make_key(path) for name, path in directories.items()}
    for name, path in directories.items():
        agree(path, {other: key for other, key in public.items() if other != name})


def _shape_facts(scenario: Scenario) -> list[Fact]:
    plan = scenario.generator
    shape = {"size": plan.size, "channels": plan.channels, "with_mask": plan.with_mask}
    dealt = scenario.partition.as_fact_value()
    return [
        Fact("data.classes", list(plan.classes), "public", _SOURCE),
        Fact("data.shape", shape, "public", _SOURCE),
        Fact("data.partition", dealt, "public", _SOURCE),
    ]


def _source_value(scenario: Scenario, share: SiteShare) -> dict[str, Any]:
    """Name, kind and path of a site's source."""
    configs = {config.name: config for config in scenario.data.sources}
    config = configs[share.source] if share.source else next(iter(configs.values()))
    path = getattr(config, "path", None)
    return {"name": config.name, "kind": config.kind, "path": None if path is None else str(path)}
