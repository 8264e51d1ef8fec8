"""The page itself: escaping, self-containment, figures as text, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from synthetic_runs import write_grid, write_run

from regimen.reports import build
from regimen.reports.decision_figures import OTHER, fold, leading
from regimen.reports.drawing import canvas, to_svg
from regimen.reports.markdown import plain
from regimen.reports.wording import duration, fixed, p_value, percent, si

NASTY = ("<script>alert(1)</script>", "a&b|c", "$x_1$ \u4e2d\u6587")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = write_grid(tmp_path_factory.mktemp("page"))
    long = "a_method_with_a_name_that_goes_on_and_on_and_on_without_any_place_to_break"
    write_run(root, long, 1, shift=0.1, config={"a": 1})
    with open(root / "odm-nano-local-seed2" / "record.jsonl", "a") as file:
        file.write(json.dumps({"kind": "warning", "step": 12, "text": "math ran out"}) + "\n")
    return build([root])


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """A page with all that may stand beside methods: the untrained model, random subsets, values at equal tokens."""
    root = tmp_path_factory.mktemp("ragged")
    for seed in (1, 2):
        for method in ("natural", "random", "topk"):
            shift, tokens = {"topk": (-0.02, 3600), "random": (0.01, 4090)}.get(method, (0.0, 4096))
            write_run(root, method, seed, shift=shift, noise=0.004, tokens_per_step=tokens, start=0.1 * seed)
    return build([root])


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.stack, self.problems, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[name] for name in ("src", "href", "xlink:href", "action") if name in attrs]
        if tag not in ("meta", "link", "br"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.problems.append(tag)


def outline(text):
    parser = Outline()
    parser.feed(text)
    assert not parser.problems and not parser.stack
    return parser


def test_page_is_well_formed_and_self_contained(page):
    text = page.read_text()
    found = outline(text)
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?https?://", text) and "@import" not in text
    assert "<script" not in text
    assert len(text) < 400_000


def test_figures_have_text_captions_and_theme_colours(page):
    text = page.read_text()
    assert text.count("<figure>") == text.count("<figcaption>") == 9
    assert text.count('role="img" aria-label="') == 9
    assert ">training tokens</text>" in text
    assert "#f1000" not in text and "#f2000" not in text and "var(--s1)" in text


def test_coordinates_are_shortened_and_texts_are_not(page):
    with canvas(2.0) as (figure, (axes,)):
        axes.plot([0, 1], [0.0625, 0.12345678])
        axes.set_yticks([0.0625], ["0.0625"])
        svg = to_svg(figure, key="k", alt="a test")
    assert ">0.0625</text>" in svg and not re.search(r'[dxy]="[^"]*\d\.\d{3}', svg)
    assert not re.search(r'[dxy]="[^"]*\d\.\d{3}', page.read_text())


def test_names_are_escaped_everywhere(tmp_path):
    for method in ("natural", "odm", "delt", "topk"):
        for seed in (1, 2):
            write_run(tmp_path, method, seed, shift=0.0 if method == "natural" else -0.01, noise=0.002, domains=NASTY)
    write_run(tmp_path, "<b>bold</b>", 1, domains=NASTY)
    text = build([tmp_path]).read_text()
    outline(text)
    assert "<script" not in text and "<b>bold" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "$x_1$" in text
    markdown = (tmp_path / "report.md").read_text()
    assert "a&amp;b\\|c" in markdown and "<script" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows if "alert" in line}
    assert len(widths) <= 2  # the score table and the table of shares


def test_markdown_has_the_findings_and_tables(page):
    text = (page.parent / "report.md").read_text()
    for expected in (
        "* **odm:** ",
        "### Bits per byte by domain",
        "### Cost",
        "### At equal FLOPs",
        "### Runs",
        "math ran out",
    ):
        assert expected in text
    assert plain("a|b <i> [x]") == "a\\|b &lt;i> \\[x\\]"


def test_what_stands_beside_the_methods_is_on_both(ragged):
    page, markdown = ragged.read_text(), (ragged.parent / "report.md").read_text()
    outline(page)
    for expected in ("zero-shot", "At equal tokens", "Tokens", "\u2248", "\u221212.1%"):
        assert expected in page and expected in markdown
    assert "<h3>Against random: macro/bits_per_byte</h3>" in page
    assert "### Against random: macro/bits\\_per\\_byte" in markdown
    assert "| zero-shot<br>untrained, 2 seeds |" in markdown


def test_many_domains_are_folded():
    shares = {f"d{i:02d}": [i / 105] for i in range(15)}
    folded = fold(shares, leading(shares))
    assert list(folded) == [f"d{i:02d}" for i in range(8, 15)] + [OTHER]
    assert sum(float(value[0]) for value in folded.values()) == pytest.approx(1.0)


def test_a_domain_has_the_same_place_in_every_figure():
    """Whatever a method makes of the shares, the pool decides which domains are named, and so their colours."""
    pool = {f"d{i}": [i + 1.0] for i in range(12)}
    turned = {name: [13.0 - value[0]] for name, value in pool.items()}
    assert list(fold(turned, leading(pool))) == list(fold(pool, leading(pool)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fixed(-0.0001, 3, sign=True), "0.000"),
        (fixed(-0.021, 3, sign=True), "\u22120.021"),
        (fixed(float("nan")), "\u2013"),
        (si(243e9), "243 G"),
        (si(1_228_800), "1.23 M"),
        (si(999_999), "1.00 M"),
        (si(3.2e22), "3.20e+22"),
        (si(0), "0"),
        (duration(74), "74 s"),
        (duration(744), "12.4 min"),
        (duration(11_160), "3.1 h"),
        (percent(0.002, sign=True), "+0.2%"),
        (p_value(0.25), "0.25"),
        (p_value(0.0039), "0.0039"),
        (p_value(1e-6), "<0.0001"),
    ],
)
def test_wording(text, expected):
    assert text == expected


def browse(folder, url, *options):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on the path")


@needs_browser
def test_a_browser_shows_it_without_errors(page, tmp_path):
    done = browse(tmp_path, page.as_uri(), "--dump-dom", "--window-size=1280,900")
    assert done.stdout.count("<figure>") == 9 and done.stdout.count("<table>") >= 7
    assert "CONSOLE" not in done.stderr, done.stderr


@needs_browser
@pytest.mark.parametrize("name", ["page", "ragged"])
def test_no_page_scrolls_sideways_on_a_phone(name, request, tmp_path):
    # A headless window is at least 500 px wide, so the phone is a frame of 390 px in a page that reports on it.
    text = request.getfixturevalue(name).read_text()
    inner = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (tmp_path / "inner.html").write_text(
        inner + "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth], '*')</script>"
    )
    (tmp_path / "outer.html").write_text(
        "<script>onmessage = e => document.title = e.data.join(' of ')</script>"
        '<iframe src="inner.html" style="width:390px;height:800px;border:0"></iframe>'
    )
    done = browse(tmp_path, (tmp_path / "outer.html").as_uri(), "--dump-dom", "--virtual-time-budget=3000")
    scroll, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups())
    assert window == 390 and scroll <= window
