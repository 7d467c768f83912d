"""Starting and stopping a server process.

Everything that can be refused is refused before a model is loaded: the data directory is locked first (two
servers in one would remove each other's files), then the port is taken, and only then is torch imported.
"""

from __future__ import annotations

import fcntl
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from airflow_provider_gradient.server.credentials import Credentials, resolve_credentials
from airflow_provider_gradient.server.settings import ServerSettings, StartError
from airflow_provider_gradient.server.store import Store


def serve(settings: ServerSettings) -> None:
    """Run a server until it is told to stop (SIGINT or SIGTERM).

    Prints one line to standard output when it is ready: its address and where its credentials are. Logs go to
    standard error.

    :raises StartError: it can't start; the message says why and what to do.
    """
    with _data_directory(settings.data_dir), _listening_socket(settings) as listener:
        url = _url(listener)
        store, credentials = _open_records(settings, url)
        _run(settings, store, listener, _ready_line(url, credentials))


def _open_records(settings: ServerSettings, url: str) -> tuple[Store, Credentials]:
    try:
        store = Store(settings.data_dir / "gradient.db")
        credentials = resolve_credentials(settings, url=url, workspace_id=store.sole_workspace())
        store.grant(token=credentials.access_token, workspace_id=credentials.workspace_id)
    except (OSError, SQLAlchemyError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise StartError(f"--data-dir {settings.data_dir}: its records can't be opened: {reason}") from None
    return store, credentials


def _run(settings: ServerSettings, store: Store, listener: socket.socket, ready: str) -> None:
    from airflow_provider_gradient.server.app import AppServer, create_app, load_services

    _log_to_standard_error()
    services = load_services(settings, store=store)
    server = AppServer(create_app(services), services)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.freeze()  # nothing made so far is ever garbage: no collection, and no exit, need look at it
    print(ready, flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn stops in good order, then repeats the signal
        server.run(sockets=[listener])
    store.close()
    if not server.engine_done:  # training that can't be waited for: a thread inside torch can't be ended
        logging.shutdown()
        os._exit(0)


@contextmanager
def _data_directory(path: Path) -> Iterator[None]:
    """The directory, made if missing and held by this process alone."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(
            f"--data-dir {path} can't be used: {error.strerror}. Choose a directory that you may write to."
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"--data-dir {path}: another server is using it. Stop that one or choose another directory."
            ) from None
        yield
    finally:
        os.close(lock)


@contextmanager
def _listening_socket(settings: ServerSettings) -> Iterator[socket.socket]:
    address = (settings.host, settings.port)
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # socket repeats the address there
        raise StartError(
            f"can't listen on {settings.host} port {settings.port}: {reason}. Stop what uses the "
            "port, or choose another with --port (0 for any free one) or another --host."
        ) from None
    with listener:
        yield listener


def _url(listener: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/api"


def _ready_line(url: str, credentials: Credentials) -> str:
    where = f"are in {credentials.path}" if credentials.path else "are those you gave"
    return f"Gradient server ready at {url} (access token and workspace id {where})"


def _log_to_standard_error() -> None:
    """Everything but what the libraries have to say to their own developers."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
