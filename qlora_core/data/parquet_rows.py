"""Parquet, a batch at a time; a row that holds what is no value is named and left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_core.data.csv_rows import no_column_twice
from qlora_core.data.json_rows import Row, without_nulls
from qlora_core.data.problems import Problems
from qlora_core.errors import BadInput, first_line


def read_parquet(path: Path, name: str, problems: Problems) -> Iterator[Row]:
    """The rows of a Parquet file; ``line`` is the row number from 1.

    A row with text that is not UTF-8 goes to ``problems``. Raises BadInput for a file that is
    damaged and for two columns of one name.
    """
    # 0.2 s to import and a dependency of datasets: only for those who need it
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        file = pq.ParquetFile(path)
        no_column_twice(file.schema_arrow.names, name)
        for batch in file.iter_batches():
            for values in _rows(batch, name, number, problems):
                number += 1
                if values is not None:
                    yield Row(name, number, {k: without_nulls(v) for k, v in values.items()})
    except (pa.ArrowException, OSError) as error:
        raise BadInput(
            f"{name}: not a readable Parquet file: {first_line(error)[:200]}",
            "write or download it again",
        ) from None


def _rows(
    batch: Any, name: str, before: int, problems: Problems
) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; ``None`` for each that is recorded as bad."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # one by one, to find which rows it is
        for at in range(batch.num_rows):
            yield _row(batch.slice(at, 1), name, before + at + 1, problems)


def _row(batch: Any, name: str, number: int, problems: Problems) -> dict[str, Any] | None:
    values, reasons = {}, []
    for column, cells in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[column] = cells[0].as_py()
        except UnicodeDecodeError:
            values[column] = _salvaged(cells[0])
            reasons.append(f'"{column}" holds bytes that are not UTF-8')
        except (ValueError, OverflowError) as error:
            values[column] = cells.to_string()
            reasons.append(f'"{column}" cannot be read: {error}')
    if not reasons:
        return values
    problems.add(name, number, "; ".join(reasons), row=values)
    return None


def _salvaged(cell: Any) -> Any:
    """The value with backslashes for the bytes that are no text: for the side file."""
    import pyarrow as pa

    if isinstance(cell, pa.StructScalar):
        return {key: _salvaged(cell[key]) for key in cell}
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar) and cell.is_valid:
        return [_salvaged(inner) for inner in cell.values]
    if isinstance(cell, pa.StringScalar | pa.LargeStringScalar) and cell.is_valid:
        return cell.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")
    try:
        return cell.as_py()
    except ValueError:
        return None
