"""What a Gradient server is started with, checked before anything is opened or loaded.

Whatever is wrong with it is a :class:`StartError` whose message names the option and the remedy, so that the
command can print one line and leave instead of failing later under load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BUILT_IN_SLUG = "tiny"
BUILT_IN_DIRECTORY = Path(__file__).parent / "tiny_model"
BUILT_IN_EMBEDDINGS_SLUG = "bge-large"
"""What published clients ask for; the built-in model is no BGE, see :mod:`.embeddings`."""
DEFAULT_DATA_DIR = Path("~/.gradient-server")
DEFAULT_PORT = 3026
"""The port of the API's published local address."""

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StartError(RuntimeError):
    """The server can't start; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of one server process.

    :param data_dir: folder of the records, the adapters and the first start's credentials; made if missing.
    :param port: 0 means any free port.
    :param access_token: what clients must send; ``None`` means the one made at the first start.
    :param workspace_id: goes with ``access_token``: give both or neither.
    :param base_models: Hugging Face model directories by slug, beside the built-in ``tiny``.
    :param aliases: more slugs for models served, alias to slug.
    :param embeddings_models: sentence-embedding directories by slug; that of ``bge-large`` replaces the
        built-in one.
    :param threads: CPU threads of torch; on a busy machine with a small model, one is fastest.
    :raises StartError: names the option that is wrong.
    """

    data_dir: Path = DEFAULT_DATA_DIR
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    access_token: str | None = field(default=None, repr=False)
    workspace_id: str | None = None
    base_models: Mapping[str, Path] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    embeddings_models: Mapping[str, Path] = field(default_factory=dict)
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_dir", Path(self.data_dir).expanduser().absolute())
        self._check_credentials()
        self._check_slugs()
        self._check_directories()
        if not 0 <= self.port <= 65535:
            raise StartError(f"--port {self.port}: a port lies between 0 and 65535")
        if self.threads < 1:
            raise StartError(f"--threads {self.threads}: torch needs at least one")

    @property
    def model_directories(self) -> dict[str, Path]:
        """Every model to load, the built-in one first."""
        return {BUILT_IN_SLUG: BUILT_IN_DIRECTORY, **self.base_models}

    def _check_credentials(self) -> None:
        if (self.access_token is None) != (self.workspace_id is None):
            given, missing = ("access token", "workspace id")[:: 1 if self.access_token else -1]
            raise StartError(
                f"the {given} is given, the {missing} is not: give both (GRADIENT_ACCESS_TOKEN and "
                "GRADIENT_WORKSPACE_ID, or the options) or neither"
            )
        for name, value in (("access token", self.access_token), ("workspace id", self.workspace_id)):
            if value is not None and not re.fullmatch(r"[!-~]+", value):
                raise StartError(f"the {name} must be one or more ASCII characters without a blank")

    def _check_directories(self) -> None:
        for slug, path in self.model_directories.items():
            if not (path / "config.json").is_file():
                raise StartError(
                    f"base model {slug!r}: {path} is no Hugging Face model directory (it has no config.json)"
                )

        for slug, path in self.embeddings_models.items():
            if not any((path / name).is_file() for name in ("config.json", "modules.json")):
                raise StartError(
                    f"--embeddings-model {slug}={path}: no model directory (it has neither config.json nor "
                    "modules.json)"
                )

    def _check_slugs(self) -> None:
        for slug in (*self.base_models, *self.aliases, *self.embeddings_models):
            if not _SLUG.fullmatch(slug):
                raise StartError(f"slug {slug!r}: letters, digits, '.', '_' and '-' only")
        if BUILT_IN_SLUG in self.base_models:
            raise StartError(
                f"--base-model {BUILT_IN_SLUG}=...: the built-in model has that slug; take another"
            )
        for alias, slug in self.aliases.items():
            if alias in self.model_directories:
                raise StartError(f"--alias {alias}={slug}: a model has that slug already; take another")
            if slug not in self.model_directories:
                known = ", ".join(self.model_directories)
                raise StartError(
                    f"--alias {alias}={slug}: no model has the slug {slug!r}; there are: {known}"
                )
