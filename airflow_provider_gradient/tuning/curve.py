"""The loss curve as picture or data: each call's loss, each epoch's mean, the scores on held-out rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import PathLike, as_path, replacing, write_rows
from airflow_provider_gradient.tuning.report import TuningReport

_PICTURES = (".svg", ".png")
_DATA = ".jsonl"


def check_curve_path(path: PathLike | None) -> None:
    """Refuse a path at which no curve can be written, before anything is trained.

    :raises InvalidRequestError: its ending is none of ``.svg``, ``.png`` and ``.jsonl``, or matplotlib is
        missing.
    """
    if path is None or _kind(path) == _DATA:
        return
    if _kind(path) not in _PICTURES:
        raise InvalidRequestError(f"curve_path: let {path} end in .svg, .png or .jsonl")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InvalidRequestError(
            "curve_path: a picture needs matplotlib (pip install 'airflow-provider-gradient[report]'); a "
            "path that ends in .jsonl gets the figures alone"
        ) from None


def write_curve(path: PathLike, report: TuningReport) -> None:
    """Write the curve of a run that was begun; the ending of ``path`` says as what.

    JSONL has one row a call: ``call, epoch, tokens, mean_loss, seconds, model_version``, and in an epoch's
    last one ``epoch_loss`` and, where there is one, ``score``.

    :raises DatasetError: it can't be written.
    """
    if _kind(path) == _DATA:
        write_rows(path, _rows(report))
        return
    picture = _picture(report, _kind(path).removeprefix("."))
    with replacing(path) as file:
        file.write(picture)


def _kind(path: PathLike) -> str:
    return PurePosixPath(as_path(path).name).suffix.lower()


def _rows(report: TuningReport) -> Iterator[dict[str, Any]]:
    results = report.call_results
    scores = {score.epoch: score.score for score in report.epoch_scores}
    for result, following in zip(results, [*results[1:], None], strict=True):
        row = result.model_dump(mode="json", exclude={"sum_loss"})
        if following is None or following.epoch != result.epoch:
            row["epoch_loss"] = report.epoch_losses[result.epoch]
            row["score"] = scores.get(result.epoch)
        yield row


def _picture(report: TuningReport, kind: str) -> bytes:
    # Not pyplot, which would keep every figure and look for a screen.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    results = report.call_results
    ends = {result.epoch: result.call + 1 for result in results}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([r.call + 1 for r in results], [r.mean_loss for r in results], color="#b9b4dd", label="call")
    losses = report.epoch_losses
    means = [(end, loss) for epoch, end in ends.items() if (loss := losses[epoch]) is not None]
    axes.plot(
        [end for end, _ in means], [loss for _, loss in means], color="#4b3fa7", marker="o", label="epoch"
    )
    axes.set_xlabel("calls")
    axes.set_ylabel("mean loss, nats a token")
    axes.set_ylim(bottom=0)
    lines = list(axes.get_lines())
    scores = [(ends[score.epoch], score.score) for score in report.epoch_scores if score.epoch in ends]
    if scores:
        right = axes.twinx()
        right.set_ylim(0, 1.02)
        right.set_ylabel("score on held-out rows")
        lines += right.plot(*zip(*scores, strict=True), color="#c2570c", marker="s", label="held-out score")
    axes.legend(handles=lines, loc="upper center", ncols=3, frameon=False)
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": report.fingerprint, "svg.fonttype": "none"}):
        figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()
