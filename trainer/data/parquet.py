"""Parquet files read a row group at a time, so that a table larger than memory can be trained on."""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from .. import TrainerError


@lru_cache(maxsize=16)
def _open(path: Path):
    """The file, and the number of the first row of each of its row groups.  Raises TrainerError."""
    import pyarrow
    from pyarrow import parquet  # costs a second, and most runs need none

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise TrainerError(
            f"data: {path} is not a parquet file ({str(error).splitlines()[0]}); write or fetch it again"
        ) from None
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, [0, *accumulate(sizes)]


def columns(path: Path) -> list[str]:
    return _open(path)[0].schema_arrow.names


def column(path: Path, name: str) -> list:
    """All values of a column."""
    return _open(path)[0].read([name]).column(name).to_pylist()


def cell(path: Path, name: str, row: int):
    """The value of one cell; cheap for rows that are asked for in their order."""
    starts = _open(path)[1]
    group = bisect_right(starts, row) - 1
    return _group(path, name, group)[row - starts[group]].as_py()


@lru_cache(maxsize=2)
def _group(path: Path, name: str, group: int):
    return _open(path)[0].read_row_group(group, columns=[name]).column(name)
