"""Gradient for Apache Airflow: complete datasets, evaluate, fine-tune, and serve, behind one web API.

Importing this package loads neither Airflow nor torch. The way of the data is the order of the folders:
:mod:`~airflow_provider_gradient.datasets` (rows), :mod:`~airflow_provider_gradient.completions`,
:mod:`~airflow_provider_gradient.evaluation`, :mod:`~airflow_provider_gradient.tuning`; each works without
Airflow. ``hooks`` and ``operators`` are the Airflow skin over them, and ``server`` answers the same API.
"""

__version__ = "0.1.0"
