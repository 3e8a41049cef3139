"""`python -m services.router [--config FILE]`."""

from services._runtime.server import main
from services.router.app import UVICORN_OPTIONS, build_app
from services.router.settings import SERVICE

if __name__ == "__main__":
    main(SERVICE, build_app, **UVICORN_OPTIONS)
