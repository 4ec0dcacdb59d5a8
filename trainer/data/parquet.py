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
    except pyarrow.ArrowException as error:
        raise damaged(path, error) from None
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return file, [0, *accumulate(sizes)]


def damaged(path: Path, error: Exception) -> TrainerError:
    return TrainerError(f"data: {path} is not a parquet file ({str(error).splitlines()[0]}); write or fetch it again")


def columns(path: Path) -> list[str]:
    return _open(path)[0].schema_arrow.names


def is_text(path: Path, name: str) -> bool:
    """Whether a column holds text, which is then an image's path, and not its bytes."""
    from pyarrow import types

    kind = _open(path)[0].schema_arrow.field(name).type
    return types.is_string(kind) or types.is_large_string(kind)


def column(path: Path, name: str) -> list:
    """All values of a column.  Raises TrainerError."""
    import pyarrow

    try:
        return _open(path)[0].read([name]).column(name).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(path, error) from None


def cell(path: Path, name: str, row: int):
    """The value of one cell; cheap for rows that are asked for in their order.  Raises OSError."""
    import pyarrow

    starts = _open(path)[1]
    group = bisect_right(starts, row) - 1
    try:
        return _group(path, name, group)[row - starts[group]].as_py()
    except pyarrow.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from None


@lru_cache(maxsize=2)
def _group(path: Path, name: str, group: int):
    return _open(path)[0].read_row_group(group, columns=[name]).column(name)
