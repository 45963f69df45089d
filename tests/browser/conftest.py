"""Chromium without a window, and JupyterLab on loopback: what tests see is what people see.

`browser_page` is a page that collects its errors; `jupyter(path)` serves one notebook out of a copy
and gives the address of it. Neither reaches for the network. Where there is no chromium, the tests
are skipped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager

import httpx2
import pytest
from playwright.sync_api import sync_playwright

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
#: Settings of JupyterLab: no news, no look for updates, no list of extensions from the network; and
#: cells that are out of sight are there for tests as well.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/extensionmanager-extension:plugin": {"enabled": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


@pytest.fixture(scope="module")
def browser(all_cores):
    """One chromium for a module; its profile is new, and removed when it closes."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium fonts-dejavu-core")
    # For a module and no longer: as long as it is there, this thread has a running event loop.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser):
    """A page of 1280 x 900; `browser_page.errors` is what went wrong in it.

    Errors in the console, exceptions, requests that failed, and those that go elsewhere.
    JupyterLab makes none of these, so none has to be left out.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.errors = []

    def check(request):
        if not re.match(r"(http|ws)://127\.0\.0\.1:|file:|data:|blob:|about:", request.url):
            page.errors.append(f"not at 127.0.0.1: {request.url}")

    page.on("console", lambda said: said.type == "error" and page.errors.append(said.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("requestfailed", lambda request: page.errors.append(f"failed: {request.url}"))
    page.on("request", check)
    yield page
    page.close()


@pytest.fixture
def jupyter(tmp_path):
    """Serve a notebook in JupyterLab, until the test ends: `jupyter(path)` gives its address."""
    with ExitStack() as stack:
        yield lambda notebook: stack.enter_context(_jupyterlab(notebook, tmp_path))


@contextmanager
def _jupyterlab(notebook, tmp_path):
    folders = {name: tmp_path / name for name in ("notebooks", "settings", "home")}
    for folder in folders.values():
        folder.mkdir()
    shutil.copy(notebook, folders["notebooks"])
    (folders["settings"] / "overrides.json").write_text(json.dumps(SETTINGS))
    own = {
        name: str(folders["home"] / name.lower())
        for name in (
            *("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"),
            *("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"),
        )
    }
    keys = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ip=127.0.0.1", "--port=0"),
            *("--LabApp.news_url=None", "--LabApp.extension_manager=readonly"),
            f"--LabApp.app_settings_dir={folders['settings']}",
            f"--ServerApp.root_dir={folders['notebooks']}",
        ],
        env={name: value for name, value in os.environ.items() if name not in keys} | own,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        said = []
        try:
            # The server makes a random token and says its address, as it does to people.
            for line in server.stderr:
                said.append(line)
                if address := re.search(r"(http://127\.0\.0\.1:\d+/lab)(\?token=\w+)", line):
                    break
            else:
                raise AssertionError(f"JupyterLab did not start: {''.join(said)}")
            # What it says later has to be read, or it would wait for that.
            reader = threading.Thread(target=server.stderr.read)
            reader.start()
            # It says its address a little before it listens there.
            with httpx2.Client(transport=httpx2.HTTPTransport(retries=8)) as client:
                client.get(address[1])
            yield f"{address[1]}/tree/{notebook.name}{address[2]}"
        finally:
            server.terminate()
        reader.join()
