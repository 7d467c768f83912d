"""Notifiers, for the callbacks of tasks."""

from airflow_provider_gradient.notifications.report import GradientReportNotifier

__all__ = ["GradientReportNotifier"]
