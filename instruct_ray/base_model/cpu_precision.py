"""pure: whether the CPU of this machine is fast enough in bfloat16 to compute a model in it."""

import torch


def is_bf16_fast() -> bool:
    """Whether torch multiplies bf16 matrices with oneDNN here, which takes AVX-512 (x86) or the bf16 extension (ARM).

    On other CPUs torch has only a plain loop for it, which is many times slower than fp32.
    Source: `use_mkldnn_bf16_matmul` in ATen/native/mkldnn/Matmul.cpp.
    """
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
