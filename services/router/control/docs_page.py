"""`/docs`: Swagger UI from an installed package. Keys are typed there, so it loads nothing from anywhere else."""

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles

ASSETS = "/docs/assets"
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def add_docs(app: FastAPI) -> None:
    """The page and its files. A key typed there is forgotten with the page."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json", title=f"{app.title} API", swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css", swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
        swagger_ui_parameters={"persistAuthorization": False, "filter": True},
    ).body  # fmt: skip

    async def docs() -> Response:
        return Response(page, media_type="text/html", headers=_HEADERS)

    app.add_api_route("/docs", docs, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_swagger", "resources")]))
