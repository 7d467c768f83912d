"""Sensors, which wait in a worker or, deferred, in the triggerer."""

from airflow_provider_gradient.sensors.gradient import GradientModelAdapterSensor, GradientServerReadySensor

__all__ = ["GradientModelAdapterSensor", "GradientServerReadySensor"]
