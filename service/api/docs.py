"""GET /docs: the API to read and to try, without a byte from elsewhere."""

import base64
import hashlib

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

# BentoML serves Swagger UI to its own page from here; the usual page of FastAPI asks a CDN for it.
_ASSETS = "/static_content"
_START = (
    'SwaggerUIBundle({url: "/v1/openapi.json", dom_id: "#api", deepLinking: true,'
    " presets: [SwaggerUIBundle.presets.apis]})"
)
_START_HASH = base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()
_PAGE = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Darkroom API</title>
<link rel="stylesheet" href="{_ASSETS}/swagger-ui.css"></head>
<body><noscript>The description itself is at <a href="/v1/openapi.json">/v1/openapi.json</a>.</noscript>
<div id="api"></div>
<script src="{_ASSETS}/swagger-ui-bundle.js"></script>
<script>{_START}</script></body>
</html>
"""
_POLICY = (
    f"default-src 'self'; script-src 'self' 'sha256-{_START_HASH}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'"
)


def router() -> APIRouter:
    """The route of the page."""
    routes = APIRouter()

    @routes.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    return routes
