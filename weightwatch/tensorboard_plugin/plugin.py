"""The plugin that TensorBoard loads: the routes of the tab."""

import gzip
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response
from werkzeug.exceptions import BadRequest, NotFound

from weightwatch.tensorboard_plugin.columns import METRICS
from weightwatch.tensorboard_plugin.library import Library
from weightwatch.tensorboard_plugin.log_dirs import LogDirs
from weightwatch.tensorboard_plugin.view import figures, overview

_STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css"}
_PATIENCE = 2.0  # seconds that TensorBoard waits for the first search when it asks whether there is anything to show
_DAY = 24 * 3600

Route: TypeAlias = Callable[[Request], Response]


class WeightWatchPlugin(base_plugin.TBPlugin):
    """The tab WeightWatch.

    It shows what is recorded in TensorBoard's log dirs. It reads ``readings.jsonl`` itself, so nothing is stored twice.

    Args:
        context: What TensorBoard tells a plugin.
    """

    plugin_name = "weightwatch"

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._library = Library(LogDirs.of(context.flags))
        self._library.start()

    def get_plugin_apps(self) -> dict[str, Callable[..., Iterable[bytes]]]:
        """Return the routes of the plugin."""
        routes: dict[str, Route] = {f"/{file.name}": _file(file) for file in _STATIC.iterdir()}
        routes |= {"/plotly.min.js": _plotly, "/runs": self._runs, "/figures": self._figures}
        return {path: Request.application(self._first(route)) for path, route in routes.items()}

    def is_active(self) -> bool:
        """Whether there is anything to show: a run, or a hint where one is; and in an empty log dir, what to do."""
        self._library.refresh()
        if not self._library.searched.wait(_PATIENCE):
            return True  # the search takes long, and the page says so
        found = self._library.found
        return bool(found.records or found.elsewhere or not found.events)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the tab's name, and the module that draws it."""
        # The page updates itself, with what has changed only.
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="WeightWatch", disable_reload=True)

    def _first(self, route: Route) -> Route:
        """Return a route that is answered before reading goes on."""

        def answer(request: Request) -> Response:
            self._library.serve()
            return route(request)

        return answer

    def _runs(self, request: Request) -> Response:
        self._library.refresh()
        return _json(request, overview(self._library))

    def _figures(self, request: Request) -> Response:
        run = self._library.run(request.args.get("run", ""))
        metric = next((metric for metric in METRICS if metric == request.args.get("metric")), None)
        if run is None:
            raise NotFound("There is no such run in the log dir.")
        if metric is None:
            raise BadRequest(f"metric is one of {', '.join(METRICS)}.")
        return _json(request, figures(run, request.args.get("direction", ""), metric))


def _json(request: Request, content: dict[str, Any]) -> Response:
    text = json.dumps(content, allow_nan=False)
    # Figures in base64 hardly get smaller, and packing them would take longer than all the rest.
    return http_util.Respond(request, text, "application/json", content_encoding="identity")


def _file(path: Path) -> Route:
    return lambda request: http_util.Respond(request, path.read_bytes(), _TYPES[path.suffix])


def _plotly(request: Request) -> Response:
    return http_util.Respond(request, _packed_plotly(), "text/javascript", content_encoding="gzip", expires=_DAY)


@cache
def _packed_plotly() -> bytes:
    """Return plotly.js, out of its Python package."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), compresslevel=4, mtime=0)
