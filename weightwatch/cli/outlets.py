"""Standard output and standard error that never raise: the exit status is the finding, whatever becomes of the text."""

import io
import select
import sys
from typing import Any, TextIO


class Outlet(io.FileIO):
    """A stream of the process that goes on taking text after its reader is gone, or its disk is full.

    Attributes:
        fault: The first error in writing; what was written since is lost. None if there was none.
    """

    fault: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or lose, all of the data."""
        if self.fault is None:
            try:
                while (written := super().write(data)) is None:  # a terminal that another process made non-blocking
                    select.select([], [self], [])
                return written
            except OSError as error:
                self.fault = error
        return memoryview(data).nbytes


def opened(stream: TextIO | None) -> tuple[TextIO | None, Outlet | None]:
    """Return a stream that writes to the same file as another, and its outlet.

    A character that the encoding lacks becomes a question mark, which keeps tables in their columns.

    Args:
        stream: ``sys.stdout`` or ``sys.stderr``; None where the process has none.
    """
    if stream is None:
        return None, None
    outlet = Outlet(stream.fileno(), "w", closefd=False)
    live = outlet.isatty() or stream is sys.stderr
    text = io.TextIOWrapper(io.BufferedWriter(outlet), encoding=stream.encoding, errors="replace", line_buffering=live)
    return text, outlet
