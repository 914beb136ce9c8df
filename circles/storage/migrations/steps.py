"""Steps that may be done again: MySQL commits each change of a table by itself, so a migration that was cut off between
two of them is started again where the first is done already."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op


def add_column(table: str, column: "sa.Column[Any]") -> None:
    """Adds a column, if it is not there."""
    if column.name not in _columns(table):
        op.add_column(table, column)


def drop_column(table: str, column: str) -> None:
    """Removes a column, if it is there."""
    if column in _columns(table):
        op.drop_column(table, column)


def create_index(name: str, table: str, columns: Sequence[str]) -> None:
    """Makes an index, if it is not there."""
    if name not in {found["name"] for found in sa.inspect(op.get_bind()).get_indexes(table)}:
        op.create_index(name, table, columns)


def _columns(table: str) -> set[str]:
    return {found["name"] for found in sa.inspect(op.get_bind()).get_columns(table)}
