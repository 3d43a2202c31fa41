"""The site in a headless Chromium with the network cut: mathematics is typeset, search finds, nothing is logged or fetched.

Chromium is driven over a pair of pipes (`--remote-debugging-pipe`), so it needs no driver and no library.
"""

import contextlib
import functools
import http.server
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

import pytest

from genbook import book
from genbook.book.bound import BROWSERS

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the network is cut: no name resolves
)  # fmt: skip


class Browser:
    """A headless Chromium that answers the DevTools protocol: messages of JSON, each ended by a zero byte."""

    def __init__(self, command: str, profile: Path):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def connect():  # Chromium listens on descriptor 3 and answers on 4
            inward, outward = os.dup(to_read), os.dup(to_write)
            os.dup2(inward, 3)
            os.dup2(outward, 4)

        arguments = [command, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            arguments, preexec_fn=connect, close_fds=False, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._ids, self.events = b"", itertools.count(1), []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _next(self, deadline: float) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("the browser does not answer")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, timeout: float = 60, **params) -> dict:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._next(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str):
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Load a page and wait until it has loaded and its mathematics is set."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")
        self.evaluate(
            "window.MathJax && MathJax.startup && MathJax.startup.promise ? MathJax.startup.promise.then(() => 1) : 1"
        )

    def wait_for(self, condition: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            time.sleep(0.05)

    def errors(self) -> list[str]:
        """What the page logged as an error, threw, or failed to load."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in (
                "error",
                "assert",
            ):
                found.append(
                    " ".join(
                        str(part.get("value", part.get("description"))) for part in params["args"]
                    )
                )
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def requests(self) -> list[str]:
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close", timeout=5)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    command = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if command is None:
        reason = f"no Chromium here (looked for {', '.join(BROWSERS)}): the site is not tested in a browser"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    browser = Browser(command, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(site):
    """The site, served on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


# How many formulas a page has, how many MathJax set, how many it set with an error, and how many it left alone.
FORMULAS = """[
    document.querySelectorAll('.math').length,
    document.querySelectorAll('mjx-container').length,
    document.querySelectorAll('mjx-merror, [data-mjx-error]').length,
    [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length,
]"""
# What of a kind is wider than its place or ends beyond the page; all that is folded is opened first.
TOO_WIDE = """(document.querySelectorAll('details').forEach((part) => {{ part.open = true; }}),
    [...document.querySelectorAll('.bd-article {}')].filter((part) => part.clientWidth && (
        part.scrollWidth > part.clientWidth + 1 || part.getBoundingClientRect().right > innerWidth
    )).map((part) => part.closest('[id]').id + ': ' + part.textContent.slice(0, 60)))"""
CHAPTERS = list(book.chapters(Path(__file__).resolve().parent.parent / "nbs"))


WRITTEN = [f"appendix/package/{part}" for part in ("book", "foundations", "runs", "vae")]


@pytest.mark.parametrize("name", [*CHAPTERS, *WRITTEN, "search", "genindex", "py-modindex"])
def test_page(browser, address, name):
    """One visit: nothing is logged or fetched, mathematics is set, and the page fits a phone in light and dark."""

    def resize(width, height):
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip

    try:
        resize(390, 844)  # before it is opened: an equation is broken for the width it is set in
        browser.open(f"{address}/{name}.html")
        assert not [url for url in browser.requests() if not url.startswith((address, "data:"))]
        expressions, containers, failed, left = browser.evaluate(FORMULAS)
        assert failed == 0 and left == 0, (
            f"{failed} formulas that MathJax can't set, {left} that it left alone"
        )
        assert containers >= expressions
        for scheme in ("light", "dark"):
            prefers = {"name": "prefers-color-scheme", "value": scheme}
            browser.call("Emulation.setEmulatedMedia", features=[prefers])
            browser.wait_for(f"document.documentElement.dataset.theme === '{scheme}'")
            width = browser.evaluate("document.documentElement.scrollWidth")
            assert width <= 390, f"the page is {width} pixels wide on a screen of 390"
        wide = browser.evaluate(TOO_WIDE.format("div.math > *"))
        assert not wide, f"equations that scroll or hide their number on a phone: {wide}"
        resize(1280, 800)
        wide = browser.evaluate(TOO_WIDE.format("div.cell_input pre"))
        assert not wide, f"code that scrolls sideways on a page of 1,280 pixels: {wide}"
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])
    assert not browser.errors()


# Equations whose lines are broken although half of the room is left.
NARROW = """[...document.querySelectorAll('.bd-article div.math mjx-container')].filter((math) => {
    const sign = math.querySelector('svg').getBoundingClientRect();
    return sign.width && math.querySelector('[data-mjx-linebox]')
        && sign.width < 0.5 * math.getBoundingClientRect().width;
}).map((math) => math.parentElement.id)"""


@pytest.mark.parametrize(
    "name", ["vae/elbo", "vae/importance", "diffusion/derivation", "results/errata"]
)
def test_an_equation_takes_the_room_that_it_has(browser, address, name):
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=1280, height=800, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    try:
        browser.open(f"{address}/{name}.html")
        assert browser.evaluate("document.querySelectorAll('div.math mjx-container').length") > 5
        assert browser.evaluate(NARROW) == []
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


def test_search_finds_a_word(browser, address):
    browser.open(f"{address}/search.html?q=likelihood")
    browser.wait_for("document.querySelectorAll('#search-results li a').length")
    found = browser.evaluate(
        "[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
    )
    assert any("likelihoods.html" in link for link in found), found
    assert not browser.errors()

    # Words that every object of JavaScript has, and that no page need have.
    for word in ("constructor", "__proto__", "tostring hasownproperty valueof"):
        browser.open(f"{address}/search.html?q={urllib.parse.quote(word)}")
        browser.wait_for("document.querySelector('#search-results p')")
        assert not browser.errors(), word
    browser.open(f"{address}/search.html?q=xyzzyplugh")
    browser.wait_for(
        "document.querySelector('#search-results p')?.textContent.includes('did not match')"
    )


def search(browser, address, words):
    """The pages that a search finds, best first."""
    browser.open(f"{address}/search.html?q={urllib.parse.quote(words)}")
    browser.wait_for(
        "document.querySelector('#search-results p')?.textContent.match(/[0-9]|did not/)"
    )
    links = "[...document.querySelectorAll('#search-results > ul > li > a')]"
    return [
        link.split(".html")[0]
        for link in browser.evaluate(f"{links}.map((a) => a.getAttribute('href'))")
    ]


@pytest.mark.parametrize(
    "one, other",
    [
        ("optimiser", "optimizer"),
        ("reparameterise", "reparameterize"),
        ("binarised", "binarized"),
        ("normalisation", "normalization"),
        ("colour", "color"),
        ("grey", "gray"),
    ],
)
def test_a_word_is_found_in_both_spellings(browser, address, one, other):
    found, too = set(search(browser, address, one)), set(search(browser, address, other))
    assert found and len(found & too) >= 0.7 * len(found | too)


def test_chapters_are_found_before_the_appendix(browser, address, root):
    appendix = (root / "_toc.yml").read_text("utf8").split("caption: Appendix")[1]
    last = {line.split()[-1] for line in appendix.splitlines() if "- file:" in line}
    assert search(browser, address, "ELBO")[0] == "vae/elbo"
    for word in ("record", "likelihood", "seed"):
        placed = [page in last for page in search(browser, address, word)]
        assert any(placed) and placed == sorted(placed), word


def test_a_switch_unfolds_all_code_of_a_page(browser, address):
    browser.open(f"{address}/vae/elbo.html")
    folded = "[...document.querySelectorAll('div.cell details.hide')]"
    press = "document.querySelector('button.show-all-code').click()"
    for open_, told in ((True, "Hide the folded code"), (False, "Show all code")):
        browser.evaluate(press)
        assert browser.evaluate(f"{folded}.every((cell) => cell.open === {str(open_).lower()})")
        assert (
            browser.evaluate("document.querySelector('button.show-all-code').textContent") == told
        )


def test_the_list_of_arguments_is_folded_and_stays_in_the_text(browser, address, root):
    """Behind the sentences of a docstring; all of it is there for copies, a screen reader and paper."""
    browser.open(f"{address}/vae/elbo.html")
    cell = "[...document.querySelectorAll('pre')].find((pre) => pre.textContent.includes('def reparameterise'))"
    source = (root / "genbook/vae/elbo.py").read_text("utf8")
    written = source[source.index("def reparameterise(") :].split("\n\n\n")[0].split("\n# %%")[0]
    assert written.strip() in browser.evaluate(f"{cell}.textContent")
    assert "noise: standard normal draws" in written
    seen = f"{cell}.innerText"
    assert "noise: standard normal draws" not in browser.evaluate(seen)
    assert "as a differentiable function" in browser.evaluate(seen)
    for open_ in (True, False):
        browser.evaluate(f"{cell}.querySelector('button.contract-switch').click()")
        assert ("noise: standard normal draws" in browser.evaluate(seen)) == open_
        told = f"{cell}.querySelector('button.contract-switch').getAttribute('aria-expanded')"
        assert browser.evaluate(told) == str(open_).lower()
    browser.evaluate("document.querySelector('button.show-all-code').click()")
    assert browser.evaluate("document.querySelectorAll('span.contract[hidden]').length") == 0


def test_a_mark_leads_to_the_check(browser, address, site, root):
    checked = [
        equation
        for equation in book.coverage(root / "nbs")
        if equation.chapter in equation.checked_by
    ]
    assert checked, "the book has no equation that its own chapter checks"
    equation = checked[0]
    browser.open(f"{address}/{equation.chapter}.html")
    identifier = f"equation-{equation.label}"
    browser.evaluate(
        f"document.getElementById('{identifier}').querySelector('.equation-mark').click()"
    )
    browser.wait_for(f"location.hash === '#check-{equation.label}'")
    top = browser.evaluate(
        f"document.getElementById('check-{equation.label}').getBoundingClientRect().top"
    )
    assert -50 < top < browser.evaluate("innerHeight")


def test_the_instrument_notices(browser, address, root, tmp_path):
    """A formula that can't be set, an error in a script and a foreign image are seen when they are there."""
    chapter = book.coverage(root / "nbs")[0].chapter
    for formula in (r"\\frac{1}{", r"\\nosuchcommand"):
        browser.open(f"{address}/{chapter}.html")
        assert browser.evaluate(FORMULAS)[2] == 0
        browser.evaluate(f"document.body.append(MathJax.tex2svg('{formula}')), 1")
        assert browser.evaluate(FORMULAS)[2] > 0

    page = tmp_path / "broken.html"
    page.write_text(
        "<img src='https://example.org/x.png' alt='x'><script>console.error('oh'); null.x</script>"
    )
    browser.open(page.as_uri())
    assert any("oh" in error for error in browser.errors()) and any(
        "null" in error for error in browser.errors()
    )
    assert "https://example.org/x.png" in browser.requests()
