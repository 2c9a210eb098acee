"""What every page that people read must hold: for the eye, in print and for a screen reader.

``faults(page)`` reads the HTML; ``browser_faults(path)`` has a headless Chromium lay it out and
measure contrast (WCAG 2.2, 1.4.3, level AA) and overflow. Both return sentences; none is good.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

from needs import CHROMIUM

VOID = {"meta", "img", "br", "hr", "link", "input", "col", "wbr"}
FORBIDDEN = {"script", "iframe", "link", "object", "embed", "base", "form"}


class Parser(HTMLParser):
    """Collects tags, attributes and text, and whether every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def parsed(page: str) -> Parser:
    """The page, gone through."""
    parser = Parser()
    parser.feed(page)
    parser.close()
    return parser


def faults(page: str, beside: str = "#") -> list[str]:
    """What is wrong with a page, as its source says; links to files named ``*beside`` are fine."""
    parser = parsed(page)
    found = [*parser.faults, *(f"<{tag}> is never closed" for tag in parser.open)]
    found += [
        *_self_contained(page, parser, beside),
        *_named(parser),
        *_headings(parser),
        *_tables(parser),
    ]
    if parser.tags[:1] != [("html", {"lang": "en"})]:
        found.append("the page does not begin with <html lang=en>")
    if "@media print" not in page or "@page" not in page:
        found.append("no print style")
    if "anonym" in page.lower():
        found.append("the page calls something anonymous")
    return found


def _self_contained(page: str, parser: Parser, beside: str) -> list[str]:
    tags = {tag for tag, _ in parser.tags}
    found = [f"<{tag}> is not allowed" for tag in sorted(tags & FORBIDDEN)]
    found += [
        f"{word} is on the page" for word in ("http://", "https://", "@import") if word in page
    ]
    for _, attributes in parser.tags:
        for key in ("src", "href", "action", "srcset", "data", "poster"):
            target = attributes.get(key) or ""
            inside = target.startswith(("data:image/png;base64,", "#"))
            inside = inside or (target.endswith(beside) and not re.match(r"\w+:|/", target))
            if target and not inside:
                found.append(f"{key} = {target[:60]!r} leads out of the page")
    if not any(a.get("http-equiv") == "Content-Security-Policy" for _, a in parser.tags):
        found.append("no content security policy")
    return found


def _named(parser: Parser) -> list[str]:
    """Everything that a screen reader cannot see has words, and every reference an aim."""
    found, ids = [], [a["id"] for _, a in parser.tags if "id" in a]
    found += [f"id {i} is there {ids.count(i)} times" for i in set(ids) if ids.count(i) > 1]
    for tag, a in parser.tags:
        aims = [(a.get("href") or "")[1:]] if (a.get("href") or "").startswith("#") else []
        aims += (a.get("aria-labelledby") or "").split()
        found += [f"{tag} refers to {aim!r}, which is not there" for aim in aims if aim not in ids]
        if tag == "img" and not (a.get("alt") or "").strip():
            found.append("a picture has no alternative text")
        if tag == "svg" and (
            a.get("role") != "img" or not re.search(r"\d", a.get("aria-label") or "")
        ):
            found.append("a plot has no words with its numbers (role=img, aria-label)")
        if a.get("role") == "region" and not a.get("aria-label"):
            found.append("a region has no name")
        if a.get("role") == "region" and a.get("tabindex") != "0":
            found.append("a region that scrolls cannot be reached by keyboard")
    for needed in ("main", "title", "header"):
        if needed not in {tag for tag, _ in parser.tags}:
            found.append(f"no <{needed}>")
    return found


def _headings(parser: Parser) -> list[str]:
    levels = [int(tag[1]) for tag, _ in parser.tags if re.fullmatch(r"h[1-6]", tag)]
    found = [] if levels[:1] == [1] and levels.count(1) == 1 else ["not exactly one h1, and first"]
    for above, level in pairwise(levels):
        if level > above + 1:
            found.append(f"h{level} follows h{above}")
    return found


def _tables(parser: Parser) -> list[str]:
    """Every table has a caption and headers with a scope; behind every plot stands a table."""
    found = [
        "a header of a table has no scope"
        for tag, a in parser.tags
        if tag == "th" and a.get("scope") not in ("col", "row", "colgroup", "rowgroup")
    ]
    tags = [tag for tag, _ in parser.tags]
    if tags.count("caption") != tags.count("table"):
        found.append(f"{tags.count('table')} tables have {tags.count('caption')} captions")
    order = [tag for tag in tags if tag in ("svg", "table")]
    if order[-1:] == ["svg"]:
        found.append("no table stands behind the last plot")
    return found


def browse(page: Path, width: int, *extra: str) -> subprocess.CompletedProcess[str]:
    """Have Chromium lay the page out; stdout is the DOM, stderr what it complained of."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
        "--enable-logging=stderr",
        f"--user-data-dir={page.parent / f'profile-{width}'}",
        f"--window-size={width},1200",
        *extra,
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


# For every element with text of its own: its colour against the nearest opaque background.
_MEASURE = """<script>
console.error('heard');
const found = [];
const numbers = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const light = c => { const [r, g, b] = numbers(c).slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const opaque = e => { for (let n = e; n; n = n.parentElement) {
  const c = getComputedStyle(n).backgroundColor, v = numbers(c);
  if (v.length < 4 ? c.startsWith('rgb(') : v[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
for (const e of document.body.querySelectorAll('*')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const box = e.getBoundingClientRect();
  if (!own || !box.width || !box.height || e.closest('style, script, defs')) continue;
  const s = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
  const colour = svg ? s.fill : s.color;
  if (svg && !colour.startsWith('rgb')) continue;
  const [a, b] = [light(colour), light(opaque(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(s.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(s.fontWeight) >= 700);
  if (ratio < (large ? 3 : 4.5)) found.push(`${e.tagName} "${e.textContent.trim().slice(0, 30)}"`
    + ` ${colour} on ${opaque(e)}: contrast ${ratio.toFixed(2)}`);
}
const d = document.documentElement;
if (d.scrollWidth > d.clientWidth) found.push(`overflows by ${d.scrollWidth - d.clientWidth} px`);
if (d.scrollHeight < 600) found.push(`only ${d.scrollHeight} px high`);
d.dataset.faults = JSON.stringify(found);
</script>"""


def browser_faults(page: Path, width: int = 900) -> list[str]:
    """What is wrong with a page as Chromium shows it; writes a measuring copy beside it."""
    found = []
    if "CONSOLE" in browse(page, width).stderr:
        found.append("the browser complains of the page")
    text = page.read_text(encoding="utf-8")
    # The copy may run a script, and complains, so that we know we would hear.
    text = re.sub(r"<meta http-equiv[^>]+>", "", text).replace("</body>", f"{_MEASURE}</body>")
    copy = page.with_name(f"measured-{page.name}")
    copy.write_text(text, encoding="utf-8")
    shown = browse(copy, width)
    if "heard" not in shown.stderr:
        found.append("the browser's complaints are not heard")
    measured = re.search(r'data-faults="([^"]*)"', shown.stdout)
    if measured is None:
        return [*found, "the page was not measured"]
    return [*found, *json.loads(html.unescape(measured[1]))]
