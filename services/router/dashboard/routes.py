"""`/dashboard` and its files. Keys are typed there: it loads nothing from anywhere else and frames nowhere."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from typing_extensions import override

from services._runtime.health import SHIELD
from services.router.domain.report.html import STYLE_SOURCE

STATIC = Path(__file__).parent / "static"
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {STYLE_SOURCE}; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Scripts and styles are files of ours. The one style named by its digest is that of decision reports, which the page
opens as documents of their own: those live under the policy of the page that made them.
"""
HEADERS = {
    **SHIELD,
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""No-cache: kept, and asked about each time (the ETag tells), so that page and API are always of one version."""


class _Files(StaticFiles):
    """Static files with the page's headers."""

    @override
    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers.update(HEADERS)
        return response


def add_dashboard(app: FastAPI) -> None:
    """The page, its own files and the chart library's."""
    files = _Files(directory=STATIC)

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def to_page(request: Request) -> Response:
        # Relative, as the page's own addresses are: a proxy may have put something before the path.
        query = request.scope["query_string"].decode("latin-1")
        return RedirectResponse(f"../dashboard{'?' if query else ''}{query}", headers=HEADERS)

    app.add_api_route("/dashboard", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/dashboard/", to_page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/dashboard/static", files)
    app.mount("/dashboard/charts", _Files(packages=[("uplot", "static")]))
