# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser, headless Chromium: every figure loads, nothing is wider than the window."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_folders import make_run, make_seed

from tempo_verl.report import build_comparison, build_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

# Chromium's own window is at least 500 wide, a frame may be as narrow as a telephone. The page in it tells what it
# looks like inside, and its parent keeps that in an attribute, which --dump-dom prints.
FRAME = """<!doctype html><html style="color-scheme: {scheme}"><body style="margin: 0">
<script>addEventListener("message", message => document.documentElement.dataset.seen = message.data);</script>
<iframe style="border: 0; color-scheme: {scheme}" width="{width}" height="900" srcdoc="{page}"></iframe>
</body></html>"""
PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    scrolled: root.scrollWidth,
    images: [...document.images].map(image => [image.alt, image.naturalWidth, image.currentSrc === image.src]),
    outside: [...document.querySelectorAll("body *")]
      .filter(element => !element.closest(".scroll, pre, details"))
      .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
      .map(element => element.outerHTML.slice(0, 80)),
  }), "*");
});
</script></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run and one of several, with long names and many groups."""
    folder = tmp_path_factory.mktemp("pages")
    one = make_run(folder / ("a_run_with_a_name_that_is_longer_than_a_telephone_is_wide" * 2))
    build_report(one)
    accuracy = {0: 0.2, 2: 0.3, 3: 0.5}
    runs = [make_seed(folder / f"seed{seed}", seed, accuracy, alarms=(1, 2)) for seed in (1, 2, 3)]
    settings = [{"calibration": {"a_setting_with_a_very_long_name": f"value-{number}" * 6}} for number in range(3)]
    runs += [make_seed(folder / f"other{number}", 1, accuracy, **config) for number, config in enumerate(settings)]
    runs.append(make_seed(folder / "upper", 1, accuracy, method="oracle"))
    build_comparison(runs, folder / "report")
    return {"one": one / "report.html", "several": folder / "report" / "report.html"}


def look(page: Path, width: int, scheme: str, tmp_path: Path) -> dict:
    """Load a copy whose content security policy allows the probe, and nothing else that it did not before."""
    text = page.read_text(encoding="utf-8")
    allowed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    probed = allowed.replace("</body>", PROBE)
    assert text != allowed != probed
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, scheme=scheme, page=html.escape(probed)), encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1600,1000",
        "--virtual-time-budget=10000",
        "--dump-dom",
        frame.as_uri(),
    ]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode >= 0:  # below: the browser itself has crashed, which says nothing about the page
            break
    assert done.returncode == 0, done.stderr
    dom = done.stdout
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, "the probe did not run"
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 800, 1400])
@pytest.mark.parametrize("name", ["one", "several"])
def test_every_figure_loads_and_nothing_overflows(pages, name, width, scheme, tmp_path):
    seen = look(pages[name], width, scheme, tmp_path)
    assert seen["width"] == width
    assert seen["scrolled"] <= seen["width"]
    assert seen["outside"] == []
    assert len(seen["images"]) == {"one": 5, "several": 4}[name]
    for alt, natural_width, is_light in seen["images"]:
        assert alt and natural_width > 500
        assert is_light == (scheme == "light")
