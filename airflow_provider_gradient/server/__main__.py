"""``python -m airflow_provider_gradient.server``: start a Gradient server."""

import typer

from airflow_provider_gradient.server.command import serve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(serve)

if __name__ == "__main__":
    app(prog_name="python -m airflow_provider_gradient.server")
