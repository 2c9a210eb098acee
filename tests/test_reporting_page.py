"""The page: self-contained, well-formed, complete, and never silent about what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from page_checks import browser_faults, faults, parsed
from reporting_facts import SITES, comparison_facts, run_facts, variants, write_samples

from synth_common.facts import Fact
from synth_common.reporting import numbers
from synth_common.reporting.compare import build_comparison
from synth_common.reporting.compare_page import render_comparison
from synth_common.reporting.html import render_report
from synth_common.reporting.report import build_report

# The badge tests cover simulation noise; its page is that of image-unit.
_PAGES = [*(v for v in variants() if v != "simulation-noise"), "comparison", "empty-comparison"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    write_samples(directory)
    return directory


@cache
def _page(name: str, run_dir: Path) -> str:
    if name.endswith("comparison"):
        return render_comparison(build_comparison(comparison_facts() if name[0] == "c" else []))
    return render_report(build_report(variants()[name]), run_dir)


@pytest.mark.parametrize("name", _PAGES)
def test_page_is_well_formed_and_self_contained(name: str, run_dir: Path) -> None:
    page = _page(name, run_dir)
    assert faults(page, beside="report.html" if name.endswith("comparison") else "#") == []


@pytest.mark.parametrize("name", _PAGES)
def test_references_of_plots_resolve(name: str, run_dir: Path) -> None:
    page = _page(name, run_dir)
    ids = {a["id"] for _, a in parsed(page).tags if "id" in a}
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= ids


@pytest.mark.parametrize("name", _PAGES)
def test_plots_have_words_and_a_table_and_headers_a_scope(name: str, run_dir: Path) -> None:
    parser = parsed(_page(name, run_dir))
    plots = [a for tag, a in parser.tags if tag == "svg"]
    for attributes in plots:
        assert attributes["role"] == "img"
        assert re.search(r"\d", attributes["aria-label"] or "")
    order = [tag for tag, _ in parser.tags if tag in ("svg", "table")]
    if name == "comparison":  # three plots with a table each, the table of all, the other plots
        assert order[:7] == ["svg", "table"] * 3 + ["table"]
        assert len(plots) == 3 + 5
    else:
        assert [b for a, b in pairwise(order) if a == "svg"] == ["table"] * len(plots)
    assert all(a.get("scope") for tag, a in parser.tags if tag == "th")
    assert all(a.get("alt") for tag, a in parser.tags if tag == "img")


def _shown(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _shown(item)
    elif isinstance(value, list):
        for item in value:
            yield from _shown(item)
    elif value is not None and not isinstance(value, bool):
        yield value


def test_every_recorded_value_is_on_the_page(run_dir: Path) -> None:
    page = "".join(parsed(_page("whole", run_dir)).text)
    kinds = (
        numbers.measured,
        numbers.setting,
        numbers.epsilon_text,
        numbers.bytes_text,
        numbers.seconds_text,
        numbers.when,
        str,
    )
    # What the page shows in another form, or leaves to the JSON.
    elsewhere = {"data.source", "samples.grid", "samples.traversal", "generator.summary"}
    # Whoever drew the other masks is named in the column of what was trained on.
    said_otherwise = {"lower", "higher", "training", "evaluation", "total", "a second observer"}
    lost = [
        (fact.name, value)
        for fact in run_facts()
        if fact.name not in elsewhere
        for value in _shown([fact.value, dict(fact.detail)])
        if value not in said_otherwise and not any(kind(value) in page for kind in kinds)
    ]
    assert lost == []


def test_rounding_does_not_hide_an_epsilon_above_its_target(run_dir: Path) -> None:
    facts = run_facts()
    for fact in facts:
        if fact.name == "privacy.site" and fact.site == SITES[0]:
            fact.value["epsilon"] = 8.0001
    assert "Epsilon above target at guangzhou-north" in render_report(build_report(facts), run_dir)


def _marks(page: str) -> int:
    return page.count('class="missing"')


@pytest.mark.parametrize("name", ["whole", "no-privacy", "gan", "many-sites", "long-names"])
def test_a_whole_run_misses_nothing(name: str, run_dir: Path) -> None:
    assert _marks(_page(name, run_dir)) == 0


@pytest.mark.parametrize("name", ["training-only", "missing-rounds", "missing-privacy", "nothing"])
def test_what_is_missing_is_marked(name: str, run_dir: Path) -> None:
    assert _marks(_page(name, run_dir)) > 0


def test_every_single_missing_fact_is_marked_on_the_page(run_dir: Path) -> None:
    # Facts whose absence means that nothing of the kind happened.
    optional = {
        "run.resumed",
        "data.label_shares",
        "data.scanner_shift",
        "federation.failure",
        "release.embedding",
    }
    # Without plots a page takes a tenth of the time; what they show is tested below.
    plotted = ("quality.", "utility.", "samples.", "membership.", "privacy.epsilon", "training.")
    facts = run_facts(sites=["only"], rounds=1)
    bare = [f for f in facts if not f.name.startswith(plotted)]
    before = _marks(render_report(build_report(bare), run_dir))
    silent = [
        name
        for name in sorted({f.name for f in bare} - optional)
        if _marks(render_report(build_report([f for f in bare if f.name != name]), run_dir))
        <= before
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        ("quality.", "quality of the synthetic images"),
        ("utility.", "usefulness of the synthetic images"),
        ("utility.segmentation", "usefulness of the synthetic images and masks"),
        ("membership.", "membership attacks on the synthetic images"),
        ("samples.", "sample images"),
        ("privacy.epsilon", "epsilon after each round"),
        ("training.loss", "training losses"),
        ("training.health", "health signals"),
        ("quality.reconstruction", "reconstruction of held-out images"),
        ("quality.elbo", "likelihood bound on held-out images"),
    ],
)
def test_a_missing_section_says_so(prefix: str, sentence: str, run_dir: Path) -> None:
    facts = [f for f in run_facts(sites=["only"], rounds=1) if not f.name.startswith(prefix)]
    text = "".join(parsed(render_report(build_report(facts), run_dir)).text)
    assert f"NOT RECORDED: {sentence}" in text


def test_one_class_with_masks_is_judged_by_dice(run_dir: Path) -> None:
    facts = [
        replace(f, value=["nuclei"]) if f.name == "data.classes" else f
        for f in run_facts(sites=["only"], rounds=1)
        if f.name != "utility.classification"
    ]
    text = "".join(parsed(render_report(build_report(facts), run_dir)).text)
    assert "There is one class (nuclei), so there is nothing to classify." in text
    assert "A segmenter trained on synthetic images alone reached a Dice of 0.612" in text
    assert "Dice, trained on synthetic" in text
    assert "Usefulness for training a segmenter (small U-Net)" in text
    assert "NOT RECORDED: usefulness" not in text


def test_each_hospitals_own_classifier_is_named_and_marks_nothing(run_dir: Path) -> None:
    """The Inception Score's classifier differs by hospital: one column, no hole in it."""
    facts = [
        replace(f, detail={**f.detail, "encoder": f"classifier of {f.site or 'all'}"})
        if f.name == "quality.inception_score"
        else f
        for f in run_facts(sites=["north", "south"], rounds=1)
    ]
    page = render_report(build_report(facts), run_dir)
    text = "".join(parsed(page).text)
    assert all(f"classifier of {name}" in text for name in ("all", "north", "south"))
    assert "each hospital's own" in text
    assert _marks(page) == _marks(
        render_report(build_report(run_facts(sites=["north", "south"], rounds=1)), run_dir)
    )


def test_a_planned_release_that_was_not_recorded_is_marked(run_dir: Path) -> None:
    facts = [f for f in run_facts(sites=["only"], rounds=1) if f.name != "release.embedding"]
    planned = Fact("plan.settings", {"release": {"embedding": {}}}, "public", "test")
    for seen, marks in ((facts, False), ([*facts, planned], True)):
        release = build_report(seen)["privacy"]["release"]
        assert (release is not None and release["epsilon"] == "NOT RECORDED") is marks
        page = render_report(build_report(seen), run_dir)
        assert ("The release before the first round" in page) is marks


def test_first_screen_of_each_kind_of_run(run_dir: Path) -> None:
    assert "NO PRIVACY GUARANTEE (epsilon = inf)" in _page("no-privacy", run_dir)
    assert "carries the noise" not in "".join(
        parsed(_page("no-privacy", run_dir).split("<nav")[0]).text
    )
    assert "SIMULATION NOISE: NOT A RELEASE" in _page("image-unit", run_dir)
    assert "SIMULATION NOISE" not in _page("whole", run_dir)
    image = _page("image-unit", run_dir)
    assert "per IMAGE, not per patient" in image
    assert "several images is protected less" in image
    assert "they would stay inside the hospital" in _page("whole", run_dir)


def test_names_are_escaped(run_dir: Path) -> None:
    page = _page("long-names", run_dir)
    assert "<Radiologie>" not in page
    assert "&lt;Radiologie&gt; $1 Nord" in page
    assert "_北京医院" in page


def test_a_grid_outside_the_run_or_not_a_png_is_not_embedded(tmp_path: Path) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    write_samples(tmp_path)
    (inside / "notes.png").write_text("no picture", encoding="utf-8")
    facts = [
        Fact("samples.grid", path, "public", "tests", detail={"kind": "phantom"})
        for path in ("../samples/phantom.png", "notes.png", "absent.png")
    ]
    page = render_report(build_report(facts), inside)
    assert "data:image/png" not in page
    for path in ("phantom.png", "notes.png", "absent.png"):
        assert f"{path} is not in the run directory" in page


def test_templates_are_part_of_the_package() -> None:
    from importlib.resources import files

    root = files("synth_common.reporting") / "templates"
    assert (root / "report.html.j2").is_file()
    assert (root / "style.css").is_file()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "width"), [("long-names", 500), ("comparison", 500), ("whole", 1200)]
)
def test_browser_shows_the_page_without_complaint_or_overflow(
    name: str, width: int, run_dir: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(_page(name, run_dir), encoding="utf-8")
    assert browser_faults(page, width) == []
