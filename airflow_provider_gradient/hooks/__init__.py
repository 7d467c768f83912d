"""Airflow connections of type ``gradient`` and the clients made from them."""
