"""Takes the documentation's pictures from a running Airflow, so that they can be taken again.

Needs Chromium (Debian: ``apt-get install chromium``; elsewhere name it in ``CHROMIUM``) and the ``docs``
extra. The Airflow has its home in a temporary folder and listens on a free loopback port; it is stopped at
the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
# Chromium's own calls to the outside are switched off: the pictures need none of them.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    """Write every picture to ``docs/images``."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        sys.exit("No Chromium found; install it, or name it in the variable CHROMIUM")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with airflow_ui() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        picture_connection_form(browser.new_page(viewport={"width": 1000, "height": 1000}), url)
        browser.close()


def picture_connection_form(page: Page, url: str) -> None:
    """The form of a Gradient connection, its standard fields and its own."""
    page.goto(f"{url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    page.get_by_role("combobox").click()
    page.keyboard.type("Gradient")
    page.keyboard.press("Enter")
    page.locator("input[name=connection_id]").fill("gradient_default")
    page.locator("input[name=host]").fill("http://127.0.0.1:3026/api")
    page.locator("input[name=password]").fill("an-access-token")
    picture(page, "connection-form.png")
    page.get_by_role("button", name="Extra Fields", exact=True).click()
    page.locator("input[name=element_workspace_id]").fill("0f8fad5b-d9cb-469f-a165-70867728950e_workspace")
    picture(page, "connection-form-extra.png")


def picture(page: Page, name: str) -> None:
    """The dialog that is open, once it stands still."""
    page.wait_for_timeout(800)
    page.get_by_role("dialog").screenshot(path=IMAGES / name)
    print(f"wrote docs/images/{name}")


@contextmanager
def airflow_ui() -> Iterator[str]:
    """An Airflow API server that asks for no login; yields its address."""
    with tempfile.TemporaryDirectory() as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = os.environ | {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        }
        airflow = [sys.executable, "-m", "airflow"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*airflow, "db", "migrate"], env=environment, check=True, **quiet)
        command = [*airflow, "api-server", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        try:
            wait_for(f"http://127.0.0.1:{port}/api/v2/monitor/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def wait_for(url: str) -> None:
    """Until something answers there, for a minute at most."""
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310  an address this script made
                return
        except urllib.error.URLError:
            time.sleep(0.5)
    sys.exit("Airflow's API server did not start")


if __name__ == "__main__":
    main()
