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
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from airflow_provider_gradient.api import ApiError
from airflow_provider_gradient.server.credentials import check_tokens, ready_lines, resolve_credentials
from airflow_provider_gradient.server.database import DATABASE_FILE
from airflow_provider_gradient.server.logs import log_to_standard_error
from airflow_provider_gradient.server.settings import ServerSettings, StartError
from airflow_provider_gradient.server.store import Store


def serve(settings: ServerSettings) -> None:
    """Run a server until it is told to stop (SIGINT or SIGTERM).

    Prints to standard output when it is ready: one line with its address and where its credentials are, and
    the three lines of the shell that a client needs, without any secret, and a line a base model, how it is
    served. Logs go to standard error.

    :raises StartError: it can't start; the message says why and what to do.
    """
    with _data_directory(settings.data_dir):
        with _naming_the_records(settings.data_dir):
            store = Store(settings.data_dir / DATABASE_FILE)
            check_tokens(settings, store.accounts, on_loopback=_is_loopback(settings.host))
        with _listening_socket(settings) as listener:
            url = _url(listener)
            with _naming_the_records(settings.data_dir):
                credentials = resolve_credentials(settings, store.accounts, url=url)
            _run(settings, store, listener, ready_lines(url, credentials))


@contextmanager
def _naming_the_records(data_dir: Path) -> Iterator[None]:
    """Whatever goes wrong with the records is a reason not to start."""
    try:
        yield
    except (ApiError, OSError, SQLAlchemyError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise StartError(f"--data-dir {data_dir}: its records can't be opened: {reason}") from None


def _run(settings: ServerSettings, store: Store, listener: socket.socket, ready: str) -> None:
    from airflow_provider_gradient.server.app import AppServer, create_app, load_services

    log_to_standard_error(settings.log_format)
    _allow_many_connections()
    services = load_services(settings, store=store)
    docs = _is_loopback(settings.host) if settings.docs is None else settings.docs
    server = AppServer(create_app(services, docs=docs), services)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.freeze()  # nothing made so far is ever garbage: no collection, and no exit, need look at it
    print(ready, *services.engine.shown, sep="\n", flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn stops in good order, then repeats the signal
        server.run(sockets=[listener])
    store.close()
    if not server.engine_done:  # training that can't be waited for: a thread inside torch can't be ended
        logging.shutdown()
        os._exit(0)


def _allow_many_connections() -> None:
    """Each takes a file descriptor, and a process may have more of them than it gets at first."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there; an unknown host is found out later."""
    with suppress(OSError):
        return ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0]).is_loopback
    return False
