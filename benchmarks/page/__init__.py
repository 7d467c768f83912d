"""The Gradient page of an Airflow with ten thousand recorded runs."""
