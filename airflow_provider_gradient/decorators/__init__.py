"""Task decorators: ``@task.gradient_complete`` and ``@task.gradient_evaluate``. Airflow finds them by the
provider's metadata; nothing is imported from here in a DAG file."""
