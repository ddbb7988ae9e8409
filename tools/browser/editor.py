"""ComfyUI's editor in headless Chromium: open a graph, measure it, run it."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .geometry import Layout

PAGE = Path(__file__).with_name("page.js")
SIZE = {"width": 1600, "height": 1000}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
READY = "window.app && app.graph && app.extensionManager && app.canvas"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Queue.MaxHistoryItems": 4,
    "Comfy.Workflow.Persist": False,
    "Comfy.VueNodes.AutoScaleLayout": True,
}


def find_browser(given: Path | None) -> Path | None:
    """Return the browser to use; None leaves the choice to Playwright, which has one of its own."""
    if given:
        if not given.is_file():
            sys.exit(f"There is no browser {given}: give --browser the program of a Chromium.")
        return given
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return Path(found) if found else None


def playwright() -> Any:
    """Return Playwright's context manager, or exit with what to install."""
    try:
        from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]
    except ImportError:
        sys.exit(
            "Templates are looked at in a browser, through Playwright, which is not installed: "
            f"{sys.executable} -m pip install playwright, or uv pip install --python {sys.executable} playwright"
        )
    return sync_playwright()


@dataclass
class Run:
    """How a run of the open graph ended."""

    ending: str
    message: str
    seconds: float
    results: dict[str, dict] = field(default_factory=dict)


class Editor:
    """`with Editor(url, vue) as editor:`; `errors` collects what the page complains about."""

    def __init__(self, url: str, vue: bool, browser: Path | None):
        self.url, self.vue, self._browser_file = url, vue, browser
        self.errors: list[str] = []
        self._refusals: list[Any] = []

    def __enter__(self) -> Editor:
        self._playwright = playwright()
        tool = self._playwright.__enter__()
        try:
            try:
                self._browser = tool.chromium.launch(
                    executable_path=str(self._browser_file) if self._browser_file else None,
                    args=["--no-sandbox", "--disable-gpu"],
                )
            except Exception as error:
                if "Executable doesn't exist" not in str(error):
                    raise
                sys.exit(
                    "No Chromium was found: install one, give it with --browser FILE, or run "
                    f"{sys.executable} -m playwright install chromium"
                )
            self.page = self._browser.new_page(viewport=SIZE)
            self.page.set_default_timeout(180_000)
            self.page.route(lambda address: not address.startswith(self.url), lambda route: route.abort())
            self.page.on("console", self._hear)
            self.page.on("response", self._look_for_refusal)
            self.page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_) -> None:
        if hasattr(self, "_browser"):
            self._browser.close()
        self._playwright.__exit__(None, None, None)

    def _hear(self, message) -> None:
        # what the editor asks of other addresses has no answer here: that is no error of a template
        if message.type == "error" and "net::ERR_FAILED" not in message.text and "Failed to fetch" not in message.text:
            self.errors.append(message.text)

    def _look_for_refusal(self, answer) -> None:
        if answer.request.method == "POST" and answer.url.endswith("/prompt") and not answer.ok:
            self._refusals.append(answer)

    def _start(self) -> None:
        self._load()
        settings = {**SETTINGS, "Comfy.VueNodes.Enabled": self.vue}
        self.page.evaluate(
            "async all => { for (const [id, value] of Object.entries(all)) "
            "await app.extensionManager.setting.set(id, value) }",
            settings,
        )
        self._load()
        if self.page.evaluate("app.extensionManager.setting.get('Comfy.VueNodes.Enabled')") is not self.vue:
            raise RuntimeError(f"the editor did not take Comfy.VueNodes.Enabled = {self.vue}")

    def _load(self) -> None:
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY)
        self.page.wait_for_function("!document.querySelector('.p-blockui-mask, #comfy-splash, #splash-loader')")
        time.sleep(2)
        self.page.evaluate(PAGE.read_text("utf-8"))

    def open(self, graph: dict, name: str) -> dict:
        """Open a graph as the Templates dialog does; return zoom, dialogs and what the editor does not know."""
        self.errors.clear()
        self.page.evaluate("([graph, name]) => measuring.open(graph, name)", [graph, name])
        time.sleep(0.5)
        return self.page.evaluate("measuring.view()")

    def layout(self) -> Layout:
        return Layout.read(self.page.evaluate("measuring.layout()"))

    def hidden(self) -> dict[str, float]:
        """Return by node how much of its texts lies below the edge."""
        return self.page.evaluate("measuring.hidden()")

    def screenshot(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(file))

    def run(self, seconds: float = 300) -> Run:
        """Press Run, and wait for the end and for what the nodes show; nothing is taken from the server's cache."""
        self.page.evaluate(
            "fetch('/free', {method: 'POST', headers: {'Content-Type': 'application/json'}, "
            "body: JSON.stringify({unload_models: true, free_memory: true})})"
        )
        time.sleep(1)
        self._refusals.clear()
        known, start = set(self._history()), time.monotonic()
        self.page.evaluate("app.queuePrompt(0)")
        entry: dict | None = None
        while entry is None:
            self.page.wait_for_timeout(250)
            took = time.monotonic() - start
            if self._refusals:
                return Run("refused", " ".join(self._refusals[0].text().split())[:800], took)
            if took > seconds:
                self.page.evaluate("fetch('/interrupt', {method: 'POST'})")
                return Run("did not end", f"within {seconds:.0f} s", took)
            entry = next((value for key, value in self._history().items() if key not in known), None)
        self.page.wait_for_timeout(2000)  # pictures are loaded, sizes settle
        status = entry["status"]
        failures = [
            f"{data.get('node_type')}: {data.get('exception_message', '').strip()}"
            for kind, data in status["messages"]
            if kind == "execution_error"
        ]
        return Run(
            status["status_str"],
            "; ".join(failures),
            time.monotonic() - start - 2,
            self.page.evaluate("measuring.results()"),
        )

    def _history(self) -> dict:
        return self.page.evaluate("fetch('/history').then(answer => answer.json())")
