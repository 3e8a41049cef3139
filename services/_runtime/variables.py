"""Variables of the environment, or files in their place: NAME, or NAME_FILE with the path of a file that holds it.

What a file holds is used as it is but for the line breaks at its end. It is never shown.
"""

from collections.abc import Mapping
from pathlib import Path

from services._runtime.settings_base import ConfigError

SUFFIX = "_FILE"
MAX_BYTES = 1 << 20


def value(name: str, environ: Mapping[str, str]) -> str | None:
    """What the variable holds, or the file that NAME_FILE names; None when neither is set.

    Raises ConfigError when both are set, or the file cannot be read.
    """
    variable = name + SUFFIX
    if variable not in environ:
        return environ.get(name)
    if name in environ:
        raise ConfigError(f"environment variables {name} and {variable} are both set: unset one of them")
    path = Path(environ[variable])
    if not environ[variable]:
        raise ConfigError(f"environment variable {variable} is empty: give the path of a file, or unset it")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"environment variable {variable}: {path} is over {MAX_BYTES} bytes: name a smaller file")
        return content.decode().rstrip("\r\n")
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise ConfigError(
            f"environment variable {variable}: {path} cannot be read ({reason}): name a file that this process may read"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"environment variable {variable}: {path} is not UTF-8: save it as text") from None
