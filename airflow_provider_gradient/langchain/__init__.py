"""Gradient for LangChain: the models of a Gradient server as langchain-core runnables."""

from airflow_provider_gradient.langchain.llm import GradientLLM, TrainResult

__all__ = ["GradientLLM", "TrainResult"]
