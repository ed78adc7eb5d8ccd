"""The id of an input row: `FILE:POSITION`. Pure."""


def format_row_id(file_number: int, position: int) -> str:
    """Format the id of the row at a position of a file; see `Record.position` for its unit."""
    return f"{file_number}:{position}"


def parse_row_id(row_id: str) -> tuple[int, int]:
    """Split a row id into (file number, position in the file)."""
    file_number, _, position = row_id.partition(":")
    return int(file_number), int(position)
