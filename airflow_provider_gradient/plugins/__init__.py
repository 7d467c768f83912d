"""The Gradient page in Airflow's UI.

Every component of Airflow imports :mod:`.gradient`, so that one imports nothing; the page is built when its
first request comes.
"""
