"""The fused cross entropy equals the plain one."""

import pytest
import torch

from instruct_ray.training.model.loss import _cross_entropy, _fused_cross_entropy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_targets", [1, 7, 300])
def test_fused_cross_entropy_equals_plain_cross_entropy(num_targets: int) -> None:
    torch.manual_seed(0)
    plain_NV = torch.randn(num_targets, 50_000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    fused_NV = plain_NV.detach().clone().requires_grad_()
    labels_N = torch.randint(50_000, (num_targets,), device="cuda")
    expected, fused = _cross_entropy(plain_NV, labels_N), _fused_cross_entropy()(fused_NV, labels_N)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)
    expected.sum().backward()
    fused.sum().backward()
    torch.testing.assert_close(fused_NV.grad, plain_NV.grad, rtol=1e-2, atol=1e-6)
