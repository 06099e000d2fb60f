"""Exit statuses of the command line, beside 0 for success."""

ALERT = 1
"""An alert fired."""

BAD_INPUT = 2
"""An argument, a setting or a file is wrong."""

FAULT = 3
"""An unexpected exception."""
