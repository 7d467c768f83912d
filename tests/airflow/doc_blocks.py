"""How each kind of code block in the documentation is run or checked.

Python is executed, with ``await`` where a notebook takes it, inside a DAG; what a page needs beforehand
stands in it as an invisible block, an HTML comment. Shell is read by ``sh -n``, and the arguments of
``gradient``, ``airflow``, ``make`` and ``pip install`` by their own parsers. JSON is parsed. A block that
can't be run is marked in the page, ``<!--- skip: next "reason" -->``.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import typer.main
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENT = re.compile(r"\w+=")
UNCHECKED = {"sqlite3", "cp", "git", "cd", "export"}
"""Programs of others, whose arguments nothing here knows."""


def run_python(example: Example) -> None:
    """Execute a block; ``runner`` and ``placeholders`` are in the page's namespace."""
    source = str(example.parsed)
    for placeholder, value in example.namespace["placeholders"].items():
        source = source.replace(placeholder, value)
    code = compile(
        "\n" * (example.line + example.parsed.line_offset) + source,
        example.path,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    result = eval(code, example.namespace)  # noqa: S307 - the documentation's own code
    if code.co_flags & inspect.CO_COROUTINE:
        runner: asyncio.Runner = example.namespace["runner"]
        runner.run(result)


def parse_json(example: Example) -> None:
    """It is one JSON document."""
    json.loads(example.parsed)


def check_shell(example: Example) -> None:
    """The shell can read it, and its commands exist with these arguments."""
    source = re.sub(r"<[A-Za-z ]+>", "placeholder", example.parsed)
    subprocess.run(["sh", "-n"], input=source, text=True, check=True)
    for line in source.replace("\\\n", " ").splitlines():
        for command in _commands(line):
            _check_command(command)


def _commands(line: str) -> list[list[str]]:
    """The words of each command, without the assignments before it."""
    commands: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            commands.append([])
        elif commands[-1] or not ASSIGNMENT.match(word):
            commands[-1].append(word)
    return [command for command in commands if command]


def _check_command(words: list[str]) -> None:
    program, *arguments = words
    match program:
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert arguments[0] in targets, f"make has no target {arguments[0]}"
        case "gradient":
            from airflow_provider_gradient.cli import app

            _parse(typer.main.get_command(app), arguments)
        case "airflow":
            from airflow.cli.cli_parser import get_parser

            get_parser().parse_args(arguments)
        case "pip":
            assert arguments[0] == "install"
            for requirement in arguments[1:]:
                _check_requirement(requirement)
        case _:
            assert program in UNCHECKED, f"{program}: nothing here can check its arguments"


def _parse(command: Any, arguments: list[str]) -> None:
    """The command's own parser takes the arguments; nothing is run."""
    with command.make_context(command.name, list(arguments)) as context:
        if rest := [*getattr(context, "_protected_args", []), *context.args]:
            name, subcommand, others = command.resolve_command(context, rest)
            assert subcommand, f"no command {name}"
            _parse(subcommand, others)


def _check_requirement(requirement: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement)
    assert match, f"not a requirement: {requirement}"
    assert match[1] == project["name"]
    for extra in (match[2] or "").split(","):
        assert not extra or extra in project["optional-dependencies"], f"no extra {extra}"


BLOCKS = Sybil(
    [
        CodeBlockParser("python", run_python),
        CodeBlockParser("json", parse_json),
        CodeBlockParser("sh", check_shell),
        SkipParser(),
    ]
)
LANGUAGES = {"python", "json", "sh", "text"}
"""All that a page may use; ``text`` is what a program printed."""
