"""The marks of tests that need vLLM, which has an environment of its own: `make test-vllm`."""

import pytest

from instruct_ray.inference.vllm_environment import is_vllm_installed

NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.skipif(not is_vllm_installed(), reason="needs vLLM; make test-vllm")]
