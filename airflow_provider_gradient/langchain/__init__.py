"""Gradient for LangChain: the models of a Gradient server as langchain-core LLMs and embeddings."""

from airflow_provider_gradient.langchain.embeddings import GradientEmbeddings
from airflow_provider_gradient.langchain.llm import GradientLLM, TrainResult

__all__ = ["GradientEmbeddings", "GradientLLM", "TrainResult"]
