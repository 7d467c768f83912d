"""Takes the documentation's pictures from a running Airflow, so that they can be taken again.

Needs Chromium (Debian: ``apt-get install chromium``; elsewhere name it in ``CHROMIUM``) and the extras
``docs`` and ``server``. Airflow and a Gradient server run the improvement loop first, so that there is
something to see; they have their homes in a temporary folder, listen on free loopback ports, and are stopped
at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
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

from scripts.demo_server import airflow_environment, free_port, gradient_server, migrate_airflow

LOOP = "example_gradient_improvement_loop"
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
# Chromium's own calls to the outside are switched off: the pictures need none of them.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    """Write every picture to ``docs/images``."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        sys.exit("No Chromium found; install it, or name it in the variable CHROMIUM")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        airflow_ui(Path(folder)) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        picture_connection_form(browser.new_page(viewport={"width": 1000, "height": 1000}), url)
        wide, phone = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
        for name in ("evaluations", "tunings"):
            picture_gradient_page(browser.new_page(viewport=wide), url, name, file=name)
        picture_gradient_page(browser.new_page(viewport=wide), url, "tunings", file="task", task="tune")
        dark = browser.new_page(viewport=wide, color_scheme="dark")
        picture_gradient_page(dark, url, "evaluations", file="dark")
        picture_gradient_page(browser.new_page(viewport=phone), url, "completions", file="phone")
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


def picture_gradient_page(page: Page, url: str, name: str, *, file: str, task: str | None = None) -> None:
    """One of the Gradient page's parts, as the navigation shows it.

    :param task: whose own page is opened from there.
    """
    page.goto(f"{url}/plugin/gradient")
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name=name.capitalize(), exact=True).click()
    frame.get_by_role("heading", name=name.capitalize()).wait_for()
    if task is not None:
        frame.get_by_role("link", name=re.compile(task)).first.click()
        frame.get_by_text("What it returned").wait_for()
    page.wait_for_timeout(800)
    page.screenshot(path=IMAGES / f"gradient-page-{file}.png")
    print(f"wrote docs/images/gradient-page-{file}.png")


def picture(page: Page, name: str) -> None:
    """The dialog that is open, once it stands still."""
    page.wait_for_timeout(800)
    page.get_by_role("dialog").screenshot(path=IMAGES / name)
    print(f"wrote docs/images/{name}")


@contextmanager
def airflow_ui(folder: Path) -> Iterator[str]:
    """An Airflow API server that asks for no login, with a finished run of the loop; yields its address.

    :param folder: gets Airflow's home, the Gradient server's data and what the run writes.
    """
    port = free_port()
    with gradient_server(folder) as connection:
        environment = airflow_environment(folder / "airflow", connection) | {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        }
        migrate_airflow(environment, folder / "migrate.log")
        airflow = [sys.executable, "-m", "airflow"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        conf = json.dumps({"output_dir": str(folder / "output")})
        print(f"running {LOOP}, a minute or two")
        subprocess.run([*airflow, "dags", "test", LOOP, "--conf", conf], check=True, **quiet)
        command = [*airflow, "api-server", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, start_new_session=True, **quiet)
        try:
            wait_for(f"http://127.0.0.1:{port}/api/v2/monitor/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def wait_for(url: str) -> None:
    """Until something answers there, for three minutes at most."""
    for _ in range(360):
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310  an address this script made
                return
        except urllib.error.URLError:
            time.sleep(0.5)
    sys.exit("Airflow's API server did not start")


if __name__ == "__main__":
    main()
