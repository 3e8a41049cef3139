"""Where vLLM runs: its interpreter, and the few variables of our environment that it gets."""

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import services
from services.inference.domain.vllm_limits import MAX_SEQUENCES

_PASSED = frozenset({
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "TZ", "USER", "XDG_CACHE_HOME",
})  # fmt: skip
_FAMILIES = (
    "CUDA_", "FLASHINFER_", "GLOO_", "GOMP_", "HIP_", "HSA_", "KMP_", "LD_", "MKL_", "NCCL_", "NUMEXPR_", "NVIDIA_",
    "OMP_", "PYTORCH_", "ROCR_", "TORCH", "TRITON_", "VLLM_",
)  # fmt: skip
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_NEVER = frozenset({
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",  # it would log completions
    "VLLM_CONFIGURE_LOGGING",  # what it logs at INFO is read for progress and for the reason of a failure
    "VLLM_LOGGING_CONFIG_PATH",
    "VLLM_LOGGING_LEVEL",  # at DEBUG the texts of errors, and parts of bodies with them
    "VLLM_TRACE_FUNCTION",
    "VLLM_ENABLE_V1_MULTIPROCESSING",  # the host decides
})  # fmt: skip
_INSTALLED = Path(services.__file__).resolve().parents[1] / ".venv-vllm"


def interpreter(configured: Path | None) -> Path:
    """The Python that has vLLM. Raises ValueError with the remedy where there is none."""
    if configured is not None:
        if not configured.exists():
            raise ValueError(f"inference.vllm_python: {configured} does not exist: name the Python that has vLLM")
        return configured
    if any(_INSTALLED.glob("lib/python*/site-packages/vllm")):
        return _INSTALLED / "bin" / "python"
    if importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    raise ValueError(
        "engine vllm needs an environment of its own: run `make install-vllm`, or name one's Python in "
        "inference.vllm_python"
    )


def environment(ours: Mapping[str, str], folder: str) -> dict[str, str]:
    """The variables of the host: what it needs of ``ours`` and no secret. ``folder`` takes all that is temporary."""
    passed = {
        name: value
        for name, value in ours.items()
        if (name in _PASSED or name.startswith(_FAMILIES)) and name not in _NEVER and not _SECRET.search(name)
    }
    return {
        # Threads that wait actively take the cores from one another: two engines on two cores lose nine tenths.
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_MAX_N_SEQUENCES": str(MAX_SEQUENCES),
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # an allowed host must not lead to others
        "TORCHINDUCTOR_CACHE_DIR": str(_cache(ours) / "cypria" / "torchinductor"),  # by default it is in TMPDIR
        **passed,
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TMPDIR": folder,
        "VLLM_RPC_BASE_PATH": folder,
    }


def _cache(ours: Mapping[str, str]) -> Path:
    return Path(ours.get("XDG_CACHE_HOME") or Path.home() / ".cache")
