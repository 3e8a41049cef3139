"""`/docs`: Swagger UI from an installed package. Keys are typed there, so it loads nothing from anywhere else."""

import base64
import hashlib
import re

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles

from services._runtime.health import SHIELD

ASSETS = "/docs/assets"
_POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def add_docs(app: FastAPI) -> None:
    """The page and its files. A key typed there is forgotten with the page."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json", title=f"{app.title} API", swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css", swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
        swagger_ui_parameters={"persistAuthorization": False, "filter": True},
    ).body  # fmt: skip
    headers = {**SHIELD, "Content-Security-Policy": policy(bytes(page)), "Cache-Control": "no-cache"}

    async def docs() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    app.add_api_route("/docs", docs, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_swagger", "resources")]))


def policy(page: bytes) -> str:
    """The page's own policy: of scripts inside it only those that are there now, by their digest."""
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page))
    return _POLICY.format(scripts="".join(f" 'sha256-{digest}'" for digest in digests))
