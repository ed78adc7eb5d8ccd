"""The id of an input row: `FILE:POSITION`."""


def parse_row_id(row_id: str) -> tuple[int, int]:
    """(number of the file, position in it)."""
    number, _, position = row_id.partition(":")
    return int(number), int(position)
