# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser, headless Chromium: every figure loads, nothing is wider than the window."""

import html
import json
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
from run_folders import make_run, make_seed

from tempo_verl.report import build_comparison, build_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")]

LOOKS = list(product(("one", "several"), (400, 800, 1400), ("light", "dark")))  # page, width, colour scheme

# Chromium's own window is at least 500 wide, a frame may be as narrow as a telephone. Each page tells what it looks
# like inside, and their parent keeps that in an attribute, which --dump-dom prints: one browser looks at all of them.
PARENT = """<!doctype html><html><body style="margin: 0">
<script>
const seen = {{}};
addEventListener("message", ({{data: [name, what]}}) => {{
  seen[name] = what;
  document.documentElement.dataset.seen = JSON.stringify(seen);
}});
</script>
{frames}
</body></html>"""
FRAME = """<iframe name="{name}" src="{page}" width="{width}" height="900" style="border: 0; color-scheme: {scheme}">
</iframe>"""
PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  parent.postMessage([name, {
    width: innerWidth,
    scrolled: root.scrollWidth,
    images: [...document.images].map(image => [image.alt, image.naturalWidth, getComputedStyle(image).filter]),
    outside: [...document.querySelectorAll("body *")]
      .filter(element => !element.closest(".scroll, pre, details"))
      .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
      .map(element => element.outerHTML.slice(0, 80)),
  }], "*");
});
</script></body>"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What a browser sees of a page of one run and one of several, with long names and many groups."""
    folder = tmp_path_factory.mktemp("pages")
    one = make_run(folder / ("a_run_with_a_name_that_is_longer_than_a_telephone_is_wide" * 2))
    build_report(one)
    accuracy = {0: 0.2, 2: 0.3, 3: 0.5}
    runs = [make_seed(folder / f"seed{seed}", seed, accuracy, alarms=(1, 2)) for seed in (1, 2, 3)]
    settings = [{"calibration": {"a_setting_with_a_very_long_name": f"value-{number}" * 6}} for number in range(3)]
    runs += [make_seed(folder / f"other{number}", 1, accuracy, **config) for number, config in enumerate(settings)]
    runs.append(make_seed(folder / "upper", 1, accuracy, method="oracle"))
    build_comparison(runs, folder / "report")
    probed(one / "report.html", folder / "one.html")
    probed(folder / "report" / "report.html", folder / "several.html")
    frames = [
        FRAME.format(name=f"{name} {width} {scheme}", page=f"{name}.html", width=width, scheme=scheme)
        for name, width, scheme in LOOKS
    ]
    (folder / "parent.html").write_text(PARENT.format(frames="\n".join(frames)), encoding="utf-8")
    return look(folder / "parent.html", folder / "profile")


def probed(page: Path, copy: Path) -> None:
    """Copy a page with a content security policy that allows the probe, and nothing else that it did not before."""
    text = page.read_text(encoding="utf-8")
    allowed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy.write_text(allowed.replace("</body>", PROBE), encoding="utf-8")
    assert text != allowed != copy.read_text(encoding="utf-8")


def look(parent: Path, profile: Path) -> dict[str, dict]:
    """Load a page of frames; what each of them told, by its name."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--window-size=1600,1000",
        "--virtual-time-budget=30000",
        "--dump-dom",
        parent.as_uri(),
    ]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        if done.returncode >= 0:  # below: the browser itself has crashed, which says nothing about the pages
            break
    assert done.returncode == 0, done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, "the probe did not run"
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS)
def test_every_figure_loads_and_nothing_overflows(seen, name, width, scheme):
    page = seen[f"{name} {width} {scheme}"]
    assert page["width"] == width
    assert page["scrolled"] <= page["width"]
    assert page["outside"] == []
    assert len(page["images"]) == {"one": 6, "several": 5}[name]
    for alt, natural_width, colours in page["images"]:
        assert alt and natural_width > 500
        assert (colours == "none") == (scheme == "light")
