"""Lineage as OpenLineage has it. This module alone imports OpenLineage; only its integration calls it.

Figures stand in OpenLineage's own facets where there is one. What no standard facet has (tokens, losses,
metrics with their intervals) is in the run facet ``gradient``. Its ``_schemaURL`` is that of OpenLineage's
general run facet, which allows further fields; docs/lineage.md describes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from airflow.providers.openlineage.extractors import OperatorLineage
from attrs import define
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    OutputDatasetFacet,
    RunFacet,
    data_quality_assertions_dataset,
    data_quality_metrics_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
)
from openlineage.client.generated.execution_parameters_run import (
    ExecutionParameter,
    ExecutionParametersRunFacet,
)

from airflow_provider_gradient.lineage.touched import Lineage, Touched
from airflow_provider_gradient.lineage.uris import openlineage_name


@define
class GradientRunFacet(RunFacet):
    """Figures of a run that no standard facet has.

    :ivar figures: as :class:`~airflow_provider_gradient.lineage.Lineage` has them.
    """

    figures: Mapping[str, Any]

    _additional_skip_redact: ClassVar[list[str]] = ["figures"]
    """Counts of tokens would be taken for tokens that are secrets."""


def operator_lineage(lineage: Lineage) -> OperatorLineage[Any, Any]:
    """``lineage`` for the events of a task's run."""
    facets: dict[str, RunFacet] = {}
    if lineage.figures:
        facets["gradient"] = GradientRunFacet(figures=lineage.figures)
    if lineage.parameters:
        facets["executionParameters"] = ExecutionParametersRunFacet(
            parameters=[
                ExecutionParameter(key=name, value=value if isinstance(value, str) else json.dumps(value))
                for name, value in lineage.parameters.items()
            ]
        )
    return OperatorLineage(
        inputs=[_input(touched) for touched in lineage.inputs],
        outputs=[_output(touched) for touched in lineage.outputs],
        run_facets=facets,
    )


def _input(touched: Touched) -> InputDataset:
    namespace, name = openlineage_name(touched.uri)
    facets: dict[str, InputDatasetFacet] = {}
    if touched.rows is not None or touched.size is not None:
        facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            rowCount=touched.rows, size=touched.size
        )
    if touched.assertions:
        facets["dataQualityAssertions"] = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            assertions=[
                data_quality_assertions_dataset.Assertion(
                    assertion=each.rule, success=each.success, column=each.column, description=each.reason
                )
                for each in touched.assertions
            ]
        )
    return InputDataset(namespace=namespace, name=name, inputFacets=facets)


def _output(touched: Touched) -> OutputDataset:
    namespace, name = openlineage_name(touched.uri)
    facets: dict[str, DatasetFacet] = {}
    written: dict[str, OutputDatasetFacet] = {}
    if touched.rows is not None or touched.size is not None:
        written["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=touched.rows, size=touched.size
        )
    if touched.column_counts:
        facets["dataQualityMetrics"] = data_quality_metrics_dataset.DataQualityMetricsDatasetFacet(
            rowCount=touched.rows,
            columnMetrics={
                column: data_quality_metrics_dataset.ColumnMetrics(count=count)
                for column, count in touched.column_counts.items()
            },
        )
    return OutputDataset(namespace=namespace, name=name, facets=facets, outputFacets=written)
