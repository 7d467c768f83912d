"""What a Gradient server is started with, checked before anything is opened or loaded.

Whatever is wrong with it is a :class:`StartError` whose message names the option and the remedy, so that the
command can print one line and leave instead of failing later under load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

BUILT_IN_SLUG = "tiny"
BUILT_IN_DIRECTORY = Path(__file__).parent / "tiny_model"
BUILT_IN_EMBEDDINGS_SLUG = "bge-large"
"""What published clients ask for; the built-in model is no BGE, see :mod:`.embeddings`."""
DEFAULT_DATA_DIR = Path("~/.gradient-server")
DEFAULT_PORT = 3026
"""The port of the API's published local address."""

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LogFormat = Literal["text", "json"]

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StartError(RuntimeError):
    """The server can't start; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server bears; the defaults let through whatever a well-meaning client sends.

    :param max_body_mb: the largest request body, in MiB; a larger one gets 413.
    :param max_samples: the most samples of one fine-tune call; more get 400.
    :param max_queue: the most completions, fine-tunes and embeddings waiting or under way; more get 503.
    :param requests_per_minute: the most requests of one token in a minute; more get 429.
    :param read_seconds: what a client may take to send a request's head, and then its body; one that takes
        longer is cut off, the body with 408.
    :param grace_seconds: what requests under way may take to be answered once the server is told to stop.
    :param resident_adapters: adapters of a base model kept in memory; the one not used for longest goes.
    :raises StartError: one of them is below 1; names the option.
    """

    max_body_mb: int = 64
    max_samples: int = 100_000
    max_queue: int = 2_000
    requests_per_minute: int = 60_000
    read_seconds: int = 60
    grace_seconds: int = 30
    resident_adapters: int = 32

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise StartError(f"--{limit.name.replace('_', '-')} {value}: must be at least 1")

    @property
    def max_body_bytes(self) -> int:
        """The largest request body, in bytes."""
        return self.max_body_mb << 20


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
    :param device: one of :data:`DEVICES`; ``auto`` is CUDA where there is some, else the CPU.
    :param dtype: one of :data:`DTYPES`; ``auto`` is bfloat16 on CUDA, float32 elsewhere.
    :param slots: completions of one base model at once; ``None`` for what fits into memory.
    :param retain: slugs of models whose fine-tunes use neighbour distillation whatever their configuration.
    :param log_format: ``text`` for people, ``json`` for one JSON object a line.
    :param docs: whether ``/docs`` and ``/openapi.json`` are served; ``None`` means only where no other
        machine can reach them.
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
    device: str = "auto"
    dtype: str = "auto"
    slots: int | None = None
    retain: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    log_format: LogFormat = "text"
    docs: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_dir", Path(self.data_dir).expanduser().absolute())
        self._check_credentials()
        self._check_slugs()
        self._check_directories()
        if not 0 <= self.port <= 65535:
            raise StartError(f"--port {self.port}: a port lies between 0 and 65535")
        if self.threads < 1:
            raise StartError(f"--threads {self.threads}: torch needs at least one")
        self._check_engine()

    @property
    def model_directories(self) -> dict[str, Path]:
        """Every model to load, the built-in one first."""
        return {BUILT_IN_SLUG: BUILT_IN_DIRECTORY, **self.base_models}

    def _check_engine(self) -> None:
        for name, value, known in (("device", self.device, DEVICES), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise StartError(f"--{name} {value}: must be one of {', '.join(known)}")
        if self.slots is not None and self.slots < 1:
            raise StartError(f"--slots {self.slots}: there must be at least one")
        for slug in self.retain:
            if slug not in self.model_directories:
                known_slugs = ", ".join(self.model_directories)
                raise StartError(f"--retain {slug}: no model has that slug; there are: {known_slugs}")

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
