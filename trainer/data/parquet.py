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
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
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


def is_list(path: Path, name: str) -> bool:
    from pyarrow import types

    kind = _open(path)[0].schema_arrow.field(name).type
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def lengths(path: Path, name: str) -> list[int]:
    """How many items each cell of a column of lists holds; a row group is in memory at a time.  Raises TrainerError."""
    import pyarrow
    from pyarrow import compute

    file, found = _open(path)[0], []
    try:
        for group in range(file.num_row_groups):
            counts = compute.list_value_length(file.read_row_group(group, columns=[name]).column(name))  # pyright: ignore[reportAttributeAccessIssue]
            found += [count or 0 for count in counts.to_pylist()]
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    return found


def cell(path: Path, name: str, row: int, item: int | None = None):
    """The value of one cell, or of an item in it; cheap for rows that are asked for in their order.  Raises OSError."""
    import pyarrow

    starts = _open(path)[1]
    group = bisect_right(starts, row) - 1
    try:
        found = _group(path, name, group)[row - starts[group]]
        return found.as_py() if item is None else found[item].as_py()
    except pyarrow.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from None


@lru_cache(maxsize=2)
def _group(path: Path, name: str, group: int):
    return _open(path)[0].read_row_group(group, columns=[name]).column(name)
