"""Downloads the files of a model from a hub into a directory; a process of its own, so that it can be stopped.

`python -m services.inference.adapters.hub_download`, with a request as JSON on its input: `repo`, `revision`, `folder`,
`code` (Python files too). Lines of JSON come out: `{"total": BYTES}`, then `{"done": COMMIT}` or `{"error": TEXT,
"again": BOOL}`, where ``again`` says that another try may do. A file that is there already is not fetched again; one
that was not whole begins anew, unless only its connection broke.
"""

import fnmatch
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from services._runtime.server import die_with_parent

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm")
_ELSEWHERE = ("original/*", "onnx/*", "openvino/*", "runs/*")
"""The same model in other forms, and records of its training."""
_AT_ONCE = 4
METADATA = ".cache"
"""Where the library keeps what it needs to go on; no part of the model."""


def download(repo: str, revision: str, folder: Path, *, code: bool) -> str:
    """Fetch, and remove what the repository does not have (any more); the commit. Raises what the library raises."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint)
    commit = api.model_info(repo, revision=revision).sha or revision
    entries = api.list_repo_tree(repo, revision=commit, recursive=True)
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    files = {name: size for name, size in sizes.items() if _wanted(name, code=code)}
    if not files:
        raise ValueError(f"'{repo}' has no files that a model is loaded from; name one with safetensors")
    _say(total=sum(files.values()))
    folder.mkdir(parents=True, exist_ok=True)
    for known in sorted(folder.rglob("*"), reverse=True):
        name = known.relative_to(folder).as_posix()
        of_ours = name.startswith(f"{METADATA}/") and not name.endswith(".incomplete")  # nobody takes those up again
        if known.is_file() and name not in files and not of_ours:
            known.unlink()

    def fetch(name: str) -> None:
        hf_hub_download(repo, name, revision=commit, local_dir=folder, endpoint=endpoint)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in [pool.submit(fetch, name) for name in sorted(files)]:
            found.result()
    for name, size in files.items():
        if (folder / name).stat().st_size != size:
            raise ConnectionError(f"'{name}' is not whole")
    shutil.rmtree(folder / METADATA, ignore_errors=True)
    return commit


def _wanted(name: str, *, code: bool) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable() or path.parts[0] == METADATA:
        raise ValueError(f"{name!a} is no name of a model's file; choose another repository")
    patterns = (*PATTERNS, "*.py") if code else PATTERNS
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in _ELSEWHERE
    )


def _reason(exc: Exception) -> tuple[str, bool]:
    """(what to tell the operator, whether another try may do)."""
    from huggingface_hub import errors

    if isinstance(exc, errors.GatedRepoError):
        return "is gated: accept its terms there and set HF_TOKEN to a token of that account", False
    if isinstance(exc, errors.RepositoryNotFoundError):
        return "does not exist there or is private: check the name, or set HF_TOKEN to a token that may read it", False
    if isinstance(exc, errors.RevisionNotFoundError):
        return "has no such revision: give the hash of a commit that it has", False
    status = getattr(getattr(exc, "response", None), "status_code", None)
    if status in {401, 403}:
        return f"may not be read (status {status}): set HF_TOKEN to a token that may", False
    words = str(exc).strip().splitlines()
    said = f"{type(exc).__name__}: {words[0] if words else 'no reason given'}"
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):
        return said, False
    remedy = (
        "see that HF_ENDPOINT (default: the public hub) can be reached and that the disk has room, or copy the model "
        "to a directory and give that as path"
    )
    return f"could not be fetched ({said}): {remedy}", True


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Serve the one request of the input; 0 when all is there."""
    request = json.loads(sys.stdin.readline())
    die_with_parent(parent=int(request["parent"]))
    try:
        commit = download(request["repo"], request["revision"], Path(request["folder"]), code=bool(request["code"]))
    except ImportError as exc:
        _say(error=f"cannot be fetched without huggingface_hub: pip install 'cypria[torch]' ({exc})", again=False)
        return 1
    except Exception as exc:
        error, again = _reason(exc)
        _say(error=error, again=again)
        return 1
    _say(done=commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
