"""A file of rows -> a folder of answers, without an endpoint."""
