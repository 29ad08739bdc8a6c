"""The report in a real browser: it renders in light and dark and at a phone's width, and makes no network request."""

import subprocess

import pytest

from lib.evals.report import render
from tests.conftest import PATIENCE
from tests.evals import handwritten

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render.html(handwritten.report()), encoding="utf-8")
    return path


@pytest.fixture
def chromium(browser, tmp_path):
    """chromium(*flags) → its standard output, or with log=True its log; every call has its own profile."""

    def run(*flags: str, log: bool = False) -> str:
        command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stderr if log else done.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "dark"), [(1200, 4000, False), (1200, 4000, True), (390, 3000, False)])
def test_screenshot(chromium, page, tmp_path, width, height, dark):
    """Background, panels, text and marks have the runs' colours, in light and dark."""
    from PIL import Image

    shot = tmp_path / "shot.png"
    theme = ("--blink-settings=preferredColorScheme=0",) if dark else ("--blink-settings=preferredColorScheme=1",)
    chromium(f"--window-size={width},{height}", *theme, f"--screenshot={shot}", page.as_uri())
    picture = Image.open(shot).convert("RGB")
    colours = {c: n for n, c in picture.getcolors(1 << 24)}
    paper, ink, sft, card = (
        ("#161614", "#eceae4", "#78a8f5", "#1f1e1c") if dark else ("#fbfaf7", "#1c1b19", "#2563c9", "#ffffff")
    )
    seen = {name: colours.get(_rgb(c), 0) for name, c in (("paper", paper), ("ink", ink), ("sft", sft), ("card", card))}
    assert seen["paper"] > 0.1 * picture.width * picture.height, seen
    assert seen["card"] > 0.1 * picture.width * picture.height, seen
    assert seen["ink"] > 500 and seen["sft"] > 100, seen


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(chromium, page, tmp_path, width):
    """Tables scroll inside their own box; the page itself never scrolls sideways."""
    assert f"wide {width} of {width}, 0 requests" in _probe(chromium, page.read_text(encoding="utf-8"), tmp_path, width)


@pytest.mark.slow
def test_the_probe_sees_requests_and_width(chromium, tmp_path):
    """Proves that the test above can fail."""
    text = (
        '<!doctype html><body style="margin:0"><img src="http://127.0.0.1:9/x.png" style="width:900px;display:block">'
    )
    assert "wide 900 of 360, 1 requests" in _probe(chromium, text, tmp_path, 360)


@pytest.mark.slow
def test_the_page_says_nothing_on_the_console(chromium, page, tmp_path):
    noisy = tmp_path / "noisy.html"
    noisy.write_text("<!doctype html><script>missing()</script>")
    assert "missing is not defined" in _console(chromium, noisy)[0]  # proves that the check can fail
    assert _console(chromium, page) == []


def _console(chromium, page) -> list[str]:
    """Returns what the page's scripts and the browser wrote to the console."""
    log = chromium("--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom", page.as_uri(), log=True)
    return [line for line in log.splitlines() if ":CONSOLE" in line]


def _probe(chromium, text: str, tmp_path, width: int) -> str:
    """Loads a page in a frame of exactly `width` pixels and returns the DOM with the measurements in it."""
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<iframe id="f" style="width:{width}px;height:900px;border:0" srcdoc="{_attribute(text)}"></iframe><script>'
        "document.getElementById('f').onload = e => { const w = e.target.contentWindow, d = w.document.documentElement;"
        "const n = w.performance.getEntriesByType('resource').length;"
        "document.body.append(`wide ${d.scrollWidth} of ${d.clientWidth}, ${n} requests`); }"
        "</script>",
        encoding="utf-8",
    )
    return chromium("--window-size=1300,1000", "--virtual-time-budget=4000", "--dump-dom", probe.as_uri())


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;")
