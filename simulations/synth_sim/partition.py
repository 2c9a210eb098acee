"""Who sees which patients: the images of one machine dealt to simulated hospitals.

Patients are dealt, never single images of a patient; patients who share a picture go
together. Every site draws on one source, so two hospitals can share one data set and a
third can bring its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from synth_common.errors import ConfigError
from synth_common.images.duplicates import linked_units, majority_labels
from synth_common.images.imageset import ImageSet
from synth_common.plan import Positive, StrictModel
from synth_common.randomness import numpy_stream
from synth_sim.scanner import Scanner

Kind = Literal["iid", "column", "sources", "dirichlet", "quantity", "one-class"]

_REDRAWS = 100

_Indices = npt.NDArray[np.int64]


class SiteShare(StrictModel):
    """One simulated hospital.

    Attributes:
        name: The site; also the name of its directory.
        source: Source its patients come from; may be left out where there is only one.
        share: Its part of that source's patients, relative to the other sites of it.
        column: Value, or values, of the source's hospital column (kind ``column``); the name
            of the site where left out.
        classes: The only classes the site sees (kind ``one-class``).
        nominal_patients: PUBLIC declaration of about how many training patients the
            site has. The sampling rate is computed from it, never from the data.
        budget_epsilon: The site's own privacy budget; default: the epsilon of the run.
        scanner: Simulated scanner character, if any.
    """

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
            description="1 to 64 letters, digits, hyphens and underscores, as in north",
        ),
    ]
    source: str | None = None
    share: Positive = 1.0
    column: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    classes: tuple[str, ...] = ()
    nominal_patients: Annotated[int, Field(ge=1)]
    budget_epsilon: Annotated[float, Field(gt=0.0)] | None = None
    scanner: Scanner | None = None


class PartitionConfig(StrictModel):
    """How the patients are dealt.

    Attributes:
        kind: ``iid``: at random, by ``share``. ``sources``: the same, within each of
            several sources. ``column``: by the source's own hospital column.
            ``dirichlet``: label skew, a class's patients in Dirichlet(``alpha``) parts
            (Hsu et al. 2019, arXiv:1909.06335). ``quantity``: sizes fall geometrically
            from the first site to the last. ``one-class``: sites with ``classes`` see
            these only, the others share the rest at random.
        sites: The hospitals.
        alpha: Concentration of kind ``dirichlet``: near 0 each class sits at one site,
            100 is nearly IID.
        ratio: Kind ``quantity``: patients of the largest site over the smallest.
        min_patients: Fewest patients a site may end up with.
    """

    kind: Kind = "iid"
    sites: Annotated[tuple[SiteShare, ...], Field(min_length=1)]
    alpha: Positive | None = None
    ratio: Annotated[float, Field(ge=1.0, le=10_000.0)] | None = None
    min_patients: Annotated[int, Field(ge=1)] = 4

    @model_validator(mode="after")
    def _consistent(self) -> PartitionConfig:
        """Refuse options that the kind would ignore, and missing ones that it needs."""
        repeated = [n for n, k in Counter(s.name.lower() for s in self.sites).items() if k > 1]
        if repeated:
            raise ValueError(f"site names must differ (also without case): {repeated}")
        for option, kind in (("alpha", "dirichlet"), ("ratio", "quantity")):
            given = getattr(self, option) is not None
            if given != (self.kind == kind):
                state = "belongs to" if given else "is required by"
                raise ValueError(f"{option} {state} kind = {kind!r} (kind is {self.kind!r})")
        for attribute, kind in (("column", "column"), ("classes", "one-class")):
            users = [s.name for s in self.sites if getattr(s, attribute)]
            if users and self.kind != kind:
                raise ValueError(f"sites {users}: {attribute} belongs to kind = {kind!r}")
        if self.kind == "one-class" and not any(s.classes for s in self.sites):
            raise ValueError("kind = 'one-class' needs at least one site with classes")
        if self.kind in ("column", "quantity") and any(s.share != 1.0 for s in self.sites):
            raise ValueError(f"kind = {self.kind!r} sets the sizes itself; leave share out")
        return self

    def as_fact_value(self) -> dict[str, Any]:
        """The value of the fact ``data.partition``: the configuration, all of it public."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True)
class _Pool:
    """The patients of one source and the sites that share them.

    Attributes:
        images: The source's images.
        groups: Linked patients, 0..G-1 per image, (N,).
        labels: Most frequent label of each group, (G,).
        config: The partition.
        sites: The sites of this source.
    """

    images: ImageSet
    groups: _Indices
    labels: _Indices
    config: PartitionConfig
    sites: tuple[SiteShare, ...]

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.labels)

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Shares of the sites, adding up to 1."""
        shares = np.array([s.share for s in self.sites])
        return np.asarray(shares / shares.sum())


def deal(
    sources: Mapping[str, ImageSet], config: PartitionConfig, seed: int
) -> dict[str, ImageSet]:
    """Deal the patients of every source to the sites.

    A patient goes to exactly one site, with all images (but see ``column``: a patient
    whom the column shows at several hospitals goes to the one with most of the images).
    Images of column values that no site names are left out.

    Args:
        sources: Images of each source by its name.
        config: The partition.
        seed: Names the draw; the same seed deals the same way.

    Returns:
        Images of each site, in the order of the configuration; the column ``sites``
        holds the site's name.

    Raises:
        ConfigError: A site names no known source or class or column value, a source is
            used by no site, or a site ends with fewer than ``min_patients`` patients.
    """
    pools = _pools(sources, config)
    dealt: dict[str, ImageSet] = {}
    for name, pool in pools.items():
        owner = _DEALERS[config.kind](pool, numpy_stream(seed, "partition", name))
        for number, site in enumerate(pool.sites):
            dealt[site.name] = _at_site(pool, owner, number)
    return {site.name: dealt[site.name] for site in config.sites}


def _pools(sources: Mapping[str, ImageSet], config: PartitionConfig) -> dict[str, _Pool]:
    """The sites of each source, with its patients."""
    members: dict[str, list[SiteShare]] = {name: [] for name in sources}
    for site in config.sites:
        if site.source is None and len(sources) != 1:
            raise ConfigError(f"site {site.name!r}: source is required, one of {sorted(sources)}")
        name = next(iter(sources)) if site.source is None else site.source
        if name not in sources:
            raise ConfigError(f"site {site.name!r}: source {name!r} is none of {sorted(sources)}")
        members[name].append(site)
    unused = sorted(name for name, sites in members.items() if not sites)
    if unused:
        raise ConfigError(f"sources {unused} are used by no site; name them in a site or drop them")
    if config.kind == "sources" and len(sources) < 2:
        raise ConfigError(f"partition.kind = 'sources' needs several sources, got {list(sources)}")
    pools = {}
    for name, sites in members.items():
        images = sources[name]
        groups = linked_units(images)
        labels = majority_labels(groups, images.labels, len(images.class_names))
        pools[name] = _Pool(images, groups, labels, config, tuple(sites))
    return pools


def _at_site(pool: _Pool, owner: _Indices, number: int) -> ImageSet:
    """The images of one site, refused if it has too few patients."""
    site, least = pool.sites[number], pool.config.min_patients
    images = pool.images.subset(owner[pool.groups] == number)
    if images.unit_count() < least:
        raise ConfigError(
            f"site {site.name!r} would have {images.unit_count()} patients, fewer than "
            f"partition.min_patients = {least}; give it a larger share, use fewer sites "
            "or another seed"
        )
    return replace(images, sites=np.full(len(images), site.name))


def _parts(shares: npt.NDArray[np.float64], count: int) -> _Indices:
    """``count`` owners in proportion to ``shares`` (largest remainder), sorted by site."""
    exact = shares / shares.sum() * count
    sizes = np.floor(exact).astype(np.int64)
    missing = count - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:missing]] += 1
    return np.repeat(np.arange(len(shares)), sizes)


def _by_share(pool: _Pool, rng: np.random.Generator) -> _Indices:
    """Kinds ``iid`` and ``sources``."""
    return rng.permutation(_parts(pool.shares, pool.count))


def _by_quantity(pool: _Pool, rng: np.random.Generator) -> _Indices:
    """Kind ``quantity``: sizes ratio^1 ... ratio^0, geometrically spaced."""
    ratio = pool.config.ratio or 1.0
    return rng.permutation(_parts(np.geomspace(ratio, 1.0, len(pool.sites)), pool.count))


def _by_dirichlet(pool: _Pool, rng: np.random.Generator) -> _Indices:
    """Kind ``dirichlet``; drawn anew, up to a limit, until every site has its minimum."""
    concentration = pool.shares * len(pool.sites) * (pool.config.alpha or 1.0)
    owner = np.zeros(pool.count, dtype=np.int64)
    sizes = _patients_per_group(pool)
    for _ in range(_REDRAWS):
        for label in np.unique(pool.labels):
            patients = np.flatnonzero(pool.labels == label)
            parts = _dirichlet(concentration, rng)
            owner[rng.permutation(patients)] = _parts(parts, len(patients))
        counts = np.bincount(owner, weights=sizes, minlength=len(pool.sites))
        if counts.min() >= pool.config.min_patients:
            break
    return owner  # a site that is still too small is refused, by name, where it is built


def _dirichlet(
    concentration: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """One Dirichlet draw that survives tiny concentrations, where gammas underflow to 0.

    log Gamma(a) = log Gamma(a + 1) + log(U) / a (Marsaglia and Tsang 2000, section 8).
    """
    logs = (
        np.log(rng.gamma(concentration + 1.0))
        + np.log1p(-rng.random(len(concentration))) / concentration
    )
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _patients_per_group(pool: _Pool) -> _Indices:
    """How many patients each group joins, (G,)."""
    pairs = np.unique(np.stack([pool.images.units(), pool.groups]), axis=1)
    return np.bincount(pairs[1], minlength=pool.count)


def _column_values(site: SiteShare) -> tuple[str, ...]:
    """The values of the hospital column that are this site's."""
    column = site.column or site.name
    return (column,) if isinstance(column, str) else column


def _by_column(pool: _Pool, rng: np.random.Generator) -> _Indices:
    """Kind ``column``; -1 for patients of a value that no site names."""
    if pool.images.sites is None:
        names = [s.name for s in pool.sites]
        raise ConfigError(f"sites {names}: their source has no hospital column; set its site_key")
    values, index = np.unique(pool.images.sites, return_inverse=True)
    owners: dict[str, int] = {}
    for number, site in enumerate(pool.sites):
        for value in _column_values(site):
            if value not in values:
                raise ConfigError(
                    f"site {site.name!r}: column value {value!r} is none of "
                    f"{list(map(str, values))}"
                )
            if value in owners:
                raise ConfigError(
                    f"site {site.name!r}: another site has column value {value!r} too "
                    f"({pool.sites[owners[value]].name!r})"
                )
            owners[value] = number
    site_of_value = np.array([owners.get(str(value), -1) for value in values])
    return np.asarray(site_of_value[majority_labels(pool.groups, index, len(values))])


def _by_class(pool: _Pool, rng: np.random.Generator) -> _Indices:
    """Kind ``one-class``: the restricted sites choose first, up to their share."""
    names = pool.images.class_names
    sizes = np.bincount(_parts(pool.shares, pool.count), minlength=len(pool.sites))
    owner = np.full(pool.count, -1, dtype=np.int64)
    for number, site in enumerate(pool.sites):
        if not site.classes:
            continue
        unknown = sorted(set(site.classes) - set(names))
        if unknown:
            raise ConfigError(f"site {site.name!r}: classes {unknown} are none of {list(names)}")
        # A patient qualifies if every image does: the site must not see another class.
        allowed = np.isin(pool.images.labels, [names.index(c) for c in site.classes])
        pure = np.bincount(pool.groups, weights=~allowed, minlength=pool.count) == 0
        free = np.flatnonzero(pure & (owner < 0))
        owner[rng.permutation(free)[: sizes[number]]] = number
    rest = np.flatnonzero(owner < 0)
    open_sites = np.array([i for i, s in enumerate(pool.sites) if not s.classes], dtype=np.int64)
    if len(open_sites):
        parts = _parts(pool.shares[open_sites], len(rest))
        owner[rng.permutation(rest)] = open_sites[parts]
    return owner


_DEALERS: Mapping[Kind, Callable[[_Pool, np.random.Generator], _Indices]] = {
    "iid": _by_share,
    "sources": _by_share,
    "column": _by_column,
    "dirichlet": _by_dirichlet,
    "quantity": _by_quantity,
    "one-class": _by_class,
}
