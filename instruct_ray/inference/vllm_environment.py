"""Whether vLLM is installed, and the environment variables that it reads when it is imported. Imports no vLLM."""

import os
from importlib.util import find_spec

import torch

# Also for the processes that vLLM starts. What is set already stays.
VARIABLES = {
    # A replica has threads, which its processes could not be forked with.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Ray has set the number of threads from `serving.num_cpus`.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # So that the model is in vLLM's engine process: on a CPU it would be in a third one. It has no other effect here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
# The sampler would be compiled, with a C++ compiler, at the first request.
CPU_VARIABLES = {"TORCHDYNAMO_DISABLE": "1"}


def is_vllm_installed() -> bool:
    """Whether this environment has vLLM."""
    return find_spec("vllm") is not None


def set_vllm_variables() -> None:
    """Set the variables in this process; to be called before vLLM is imported."""
    variables = VARIABLES if torch.cuda.is_available() else VARIABLES | CPU_VARIABLES
    for name, value in variables.items():
        os.environ.setdefault(name, value)
