"""Builds the wheel and the sdist and tries them as users will: in empty environments, away from the checkout.

What is checked is listed in docs/releasing.md. The files to publish are left in ``dist/``. It prints a line a
step, stops at the first that fails, and exits with 1 then. Packages are taken at the versions of
``constraints.txt``; uv, where it is installed, makes the environments faster.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PACKAGE = "airflow_provider_gradient"
NAME = "airflow-provider-gradient"
FOR_DEVELOPERS = {"bench", "demo-celery", "dev", "docs", "release", "test"}
"""Extras that nobody installs from an index."""
NEEDS = {f"{PACKAGE}.server": "server", f"{PACKAGE}.lineage.openlineage": "openlineage"}
"""Modules that can be imported with an extra only."""
QUESTION = "Question: What is the capital of France?\n\nAnswer:"


def main() -> int:
    """Build, look, install, import, serve; the exit code."""
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        work = Path(folder)
        lead_nowhere(work)
        wheel, sdist = build(work)
        extras = look_into(wheel)
        for extra in ["", *extras]:
            environment = installed(work, wheel, extra)
            import_modules(environment, wheel, extra)
            if not extra:
                ask_airflow(environment, wheel)
            if extra == "server":
                serve(environment, work)
            shutil.rmtree(environment)
    say(f"dist/ holds what was tried: {wheel.name}, {sdist.name}")
    return 0


def build(work: Path) -> tuple[Path, Path]:
    """The wheel, built from the sdist, and the sdist; twine has nothing against them."""
    tools = environment_at(work / "tools")
    install(tools, "build", "twine")
    shutil.rmtree(DIST, ignore_errors=True)
    run(tools / "bin/python", "-m", "build", "--outdir", DIST, ROOT)
    [wheel], [sdist] = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    say(f"built {wheel.name} ({wheel.stat().st_size >> 20} MiB) and {sdist.name}")
    run(tools / "bin/python", "-m", "twine", "check", "--strict", wheel, sdist)
    say("twine check: passed")
    shutil.rmtree(tools)
    return wheel, sdist


def look_into(wheel: Path) -> list[str]:
    """The wheel has every file of the package; its extras for users."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", PACKAGE, cwd=ROOT)
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode())
    if packed != set(listed.splitlines()):
        fail(f"the wheel and {PACKAGE}/ differ in {sorted(packed ^ set(listed.splitlines()))}")
    for part in ("py.typed", "/templates/", "/server/tiny_model/", "/server/migrations/versions/"):
        if not any(part in name for name in packed):
            fail(f"the wheel has no {part}")
    say(f"the wheel has all {len(packed)} files: py.typed, templates, the tiny model, migrations")
    return sorted(set(fields.get_all("Provides-Extra", [])) - FOR_DEVELOPERS)


def installed(work: Path, wheel: Path, extra: str) -> Path:
    """A new environment with the wheel and an extra."""
    started = time.monotonic()
    environment = environment_at(work / f"environment-{extra or 'plain'}")
    install(environment, f"{wheel}[{extra}]" if extra else str(wheel))
    run(environment / "bin/python", "-m", "pip", "check")
    what = f"[{extra}]" if extra else "without extras"
    say(f"installed {what} in {time.monotonic() - started:.0f} s; pip check passed")
    return environment


def import_modules(environment: Path, wheel: Path, extra: str) -> None:
    """Every public module that this environment should have can be imported, from the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if name.endswith(".py") and "/migrations/" not in name]
    modules = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
    public = [module for module in modules if not re.search(r"\._", module)]
    wanted = [module for module in public if needed_extra(module) in ("", extra)]
    script = (
        f"import importlib, sys, {PACKAGE}\n"
        f"for name in {wanted!r}: importlib.import_module(name)\n"
        f"assert {PACKAGE}.__file__.startswith(sys.prefix), {PACKAGE}.__file__\n"
    )
    run(environment / "bin/python", "-I", "-c", script, cwd=environment)
    say(f"  imported {len(wanted)} of {len(public)} public modules")


def needed_extra(module: str) -> str:
    """The extra that a module needs, or nothing."""
    return next((extra for name, extra in NEEDS.items() if f"{module}.".startswith(f"{name}.")), "")


def ask_airflow(environment: Path, wheel: Path) -> None:
    """Airflow knows the provider, at the wheel's version."""
    version = wheel.name.split("-")[1]
    told = run(environment / "bin/python", "-m", "airflow", "providers", "get", NAME, cwd=environment)
    if NAME not in told or version not in told:
        fail(f"airflow providers get {NAME} does not show version {version}:\n{told}")
    say(f"  airflow providers get {NAME}: version {version}")


def serve(environment: Path, work: Path) -> None:
    """The server in the wheel starts and completes a prompt, asked by the command line in the wheel."""
    data = work / "data"
    command = [environment / "bin/gradient", "serve", "--port", "0", "--data-dir", data]
    with subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None or not server.stdout.readline():
                fail("the server did not start")
            lines = (data / "credentials.env").read_text().splitlines()
            credentials = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            answer = run(
                environment / "bin/gradient", "complete", "tiny", QUESTION, cwd=work, environment=credentials
            )
        finally:
            server.terminate()
    if "Paris" not in answer:
        fail(f"the tiny model doesn't know the capital of France: {answer!r}")
    say(f"  the server answered: {answer.strip()}")


def environment_at(path: Path) -> Path:
    """A new virtual environment of this Python."""
    run(sys.executable, "-m", "venv", path)
    return path


def install(environment: Path, *requirements: str) -> None:
    """Install what is asked for, at the versions of ``constraints.txt``."""
    python = environment / "bin/python"
    tool: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    if uv := shutil.which("uv"):
        tool = [uv, "pip", "install", "--quiet", "--python", python]
    run(*tool, "--constraint", ROOT / "constraints.txt", *requirements)


def run(*command: str | Path, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | (environment or {}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        fail(f"{' '.join(map(str, command))[:300]}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def lead_nowhere(work: Path) -> None:
    """Take away the environment variables that lead to the checkout, an Airflow or a server of the user's."""
    for name in [name for name in os.environ if name.startswith(("AIRFLOW", "GRADIENT_", "PYTHON"))]:
        del os.environ[name]
    os.environ["AIRFLOW_HOME"] = str(work / "airflow")


def say(text: str) -> None:
    """A line for the reader, at once."""
    print(text, flush=True)


def fail(text: str) -> None:
    """End with a message."""
    sys.exit(f"release-check: {text}")


if __name__ == "__main__":
    sys.exit(main())
