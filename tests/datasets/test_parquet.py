"""Parquet in: what its types become, and what can be wrong."""

from __future__ import annotations

import decimal
import json
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_files import parquet
from upath import UPath

from airflow_provider_gradient.datasets import DatasetError, fingerprint, read_rows, row_bytes

ROWS: list[dict[str, Any]] = [
    {"n": 2**63 - 1, "x": 0.1, "ok": True, "text": "誰 🏈", "list": [1, None], "nested": {"a": {"b": [1.5]}}},
    {"n": -1, "x": None, "ok": None, "text": None, "list": None, "nested": None},
    {"n": None, "x": -0.0, "ok": False, "text": "", "list": [], "nested": {"a": None}},
]

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def columns(values: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Dicts whose keys stand in the order of ``values``."""
    return st.tuples(*values.values()).map(lambda drawn: dict(zip(values, drawn, strict=True)))


ROW = columns(
    {
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "text": st.none() | TEXT,
        "list": st.none() | st.lists(st.none() | TEXT, max_size=3),
        "nested": st.none() | columns({"ok": st.none() | st.booleans(), "x": st.floats(-1, 1)}),
    }
)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(ROW, min_size=1), group=st.integers(1, 3))
def test_numbers_truths_texts_nulls_and_what_is_nested_are_read_as_they_are(
    rows: list[dict[str, Any]], group: int, tmp_path: Path
) -> None:
    (tmp_path / "rows.parquet").write_bytes(parquet(rows, row_group_size=group))
    read = list(read_rows(tmp_path / "rows.parquet"))
    assert read == rows
    assert json.dumps(read) == json.dumps(rows)  # tells 1 from 1.0 and from true
    assert fingerprint(tmp_path / "rows.parquet") == fingerprint(rows)


def test_rows_are_read_from_any_file_system_over_batches_and_row_groups(tmp_path: Path) -> None:
    rows = [{**ROWS[n % 3], "n": n} for n in range(3000)]
    path = UPath(f"memory://{tmp_path.name}/rows.parquet")
    path.write_bytes(parquet(rows, row_group_size=1111))
    assert list(read_rows(path)) == rows


ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
MOMENT = datetime(2026, 3, 1, 12, 30, 0, 250_000, tzinfo=UTC)
TOLD: dict[str, tuple[pa.Array, Any]] = {
    "timestamp": (pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ms")), "2026-03-01 12:30:00.250"),
    "in a zone": (pa.array([MOMENT], pa.timestamp("us", "Asia/Tokyo")), "2026-03-01 12:30:00.250000Z"),
    "nanoseconds": (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    "date": (pa.array([date(2026, 3, 1)]), "2026-03-01"),
    "time": (pa.array([time(1, 2, 3, 4)], pa.time64("us")), "01:02:03.000004"),
    "decimal": (pa.array([decimal.Decimal("12.50")], pa.decimal128(9, 2)), "12.50"),
    "uuid": (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ID.bytes], pa.binary(16))), str(ID)),
    "category": (pa.array(["a"]).dictionary_encode(), "a"),
    "large text": (pa.array(["a"], pa.large_string()), "a"),
    "float": (pa.array([0.1], pa.float32()), 0.1),
    "floats": (pa.array([[0.1, None]], pa.list_(pa.float32())), [0.1, None]),
    "float in a struct": (pa.array([{"x": 0.7}], pa.struct([("x", pa.float32())])), {"x": 0.7}),
    "half a float": (pa.array([1.5], pa.float32()).cast(pa.float16()), 1.5),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    "nothing": (pa.nulls(1), None),
    "map": (pa.array([[("k", 1.5)]], pa.map_(pa.string(), pa.float64())), {"k": 1.5}),
    "dates in a list": (pa.array([[{"at": MOMENT}, None]]), [{"at": "2026-03-01 12:30:00.250000Z"}, None]),
    "fixed list": (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), [1.0, 2.0]),
    "map in a struct": (
        pa.array([{"m": [("k", date(2026, 3, 1))]}], pa.struct([("m", pa.map_(pa.string(), pa.date32()))])),
        {"m": {"k": "2026-03-01"}},
    ),
}


@pytest.mark.parametrize(("array", "told"), TOLD.values(), ids=TOLD)
def test_types_that_json_lacks_have_one_form_nulls_too(tmp_path: Path, array: pa.Array, told: Any) -> None:
    table = pa.table({"a": pa.chunked_array([array, pa.nulls(1, array.type)])})
    pq.write_table(table, tmp_path / "rows.parquet")
    read = list(read_rows(tmp_path / "rows.parquet"))
    assert read == [{"a": told}, {"a": None}]
    assert row_bytes(read[0], "row 0")


NAN, INF = float("nan"), float("inf")
REFUSED: dict[str, tuple[list[Any], pa.DataType, str]] = {
    "nan": ([0.5, None, NAN], pa.float64(), "row 2: column 'bad' is nan, which JSON can't hold"),
    "infinity within": ([[0.5], [INF]], pa.list_(pa.float64()), "row 1: column 'bad' is inf"),
    "bytes": ([b"?"], pa.binary(), "row 0: column 'bad' is of type binary, which JSON has no form for"),
    "duration within": ([[1]], pa.list_(pa.duration("s")), "row 0: column 'bad' is of type duration"),
    "map by numbers": ([[(1, 2)]], pa.map_(pa.int64(), pa.int64()), "row 0: column 'bad' is of type map"),
}


@pytest.mark.parametrize(("values", "type_", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_json_cannot_hold_is_an_error_that_names_row_and_column(
    tmp_path: Path, values: list[Any], type_: pa.DataType, reason: str
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"good": pa.nulls(len(values)), "bad": pa.array(values, type_)}), path)
    with pytest.raises(DatasetError) as raised:
        list(read_rows(path))
    assert str(raised.value).startswith(f"{path}, {reason}")


def test_indices_run_on_over_the_files_of_a_folder(tmp_path: Path) -> None:
    for name, numbers in {"a": [0, 1], "b": [2, 3]}.items():
        (tmp_path / f"{name}.parquet").write_bytes(parquet([{"n": n} for n in numbers]))
    assert list(read_rows(tmp_path)) == [{"n": n} for n in range(4)]
    pq.write_table(pa.table({"n": [1.0, NAN]}), tmp_path / "c.parquet")
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/c.parquet, row 1: column 'n' is nan"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "empty", "overwritten", "no Parquet"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    content = parquet([{"n": n, "text": f"text {n}"} for n in range(5000)])
    path = tmp_path / "rows.parquet"
    path.write_bytes(
        {
            "cut": content[:-100],
            "empty": b"",
            "overwritten": b"PAR1" + b"\xff" * 2000 + content[2004:],
            "no Parquet": b'{"a": 1}\n',
        }[damage]
    )
    with pytest.raises(DatasetError, match=rf"can't read {path}"):
        list(read_rows(path))


def test_a_table_without_rows_is_no_dataset_and_a_missing_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "rows.parquet")
    with pytest.raises(DatasetError, match="the dataset has no rows"):
        list(read_rows(tmp_path / "rows.parquet"))
    with pytest.raises(DatasetError, match="there is no such file"):
        list(read_rows(tmp_path / "nope.parquet"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["n", "n"]), tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match="there are two columns 'n'"):
        list(read_rows(tmp_path / "x.parquet"))


MEASURE = """
import sys
from pathlib import Path
from airflow_provider_gradient.datasets import read_rows
rows = sum(1 for _ in read_rows(sys.argv[1]))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(rows, int(peak.split()[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    peaks = []
    for rows in (1_000, 40_000):
        path = tmp_path / f"{rows}.parquet"
        texts = pa.array([f"{n:05000}" for n in range(rows)])
        pq.write_table(pa.table({"text": texts}), path, row_group_size=rows, compression="snappy")
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
        )
        count, peak = map(int, done.stdout.split())
        assert count == rows
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 80_000_000  # of 200 that the larger file's row group holds


def test_without_pyarrow_the_extra_that_has_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(parquet(ROWS))
    code = """
import sys
sys.modules["pyarrow"] = None
from airflow_provider_gradient.datasets import DatasetError, read_rows
try:
    list(read_rows(sys.argv[1]))
except DatasetError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.parquet")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "Parquet needs pyarrow: pip install 'airflow-provider-gradient[parquet]'\n"


def test_reading_other_formats_loads_no_pyarrow(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n')
    code = """
import sys
from airflow_provider_gradient.datasets import read_rows
list(read_rows(sys.argv[1]))
print("pyarrow" in sys.modules)
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "rows.jsonl")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "False\n"
