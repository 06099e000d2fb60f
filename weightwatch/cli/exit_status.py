"""Exit statuses of the command line: an alert fired, an input is wrong, an unexpected exception. Success is 0."""

ALERT, BAD_INPUT, FAULT = 1, 2, 3
