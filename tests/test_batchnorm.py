import copy

import pytest
import torch
from torch import nn

from flatbench.optim import frozen_batchnorm

KINDS = [
    (nn.BatchNorm1d, (8, 3)),
    (nn.BatchNorm2d, (8, 3, 4, 4)),
    (nn.BatchNorm3d, (8, 3, 2, 2, 2)),
]


def statistics(module):
    return {name: b.clone() for name, b in module.named_buffers()}


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "shape"), KINDS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_stay_inside_and_move_outside(kind, shape, momentum):
    module, x = kind(3, momentum=momentum), torch.randn(shape)
    module(x)
    before = statistics(module)
    with frozen_batchnorm(module):
        module(x + 1)
    assert_same(statistics(module), before)
    module(x + 1)
    after = statistics(module)
    assert after["num_batches_tracked"] == before["num_batches_tracked"] + 1
    assert not torch.equal(after["running_mean"], before["running_mean"])


@pytest.mark.parametrize(("kind", "shape"), KINDS)
def test_output_inside_is_the_training_mode_output(kind, shape):
    module, x = kind(3), torch.randn(shape)
    expected = copy.deepcopy(module)(x)
    with frozen_batchnorm(module):
        got = module(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_sync_batchnorm_is_a_batchnorm_here_too():
    # Its forward pass wants an accelerator; what counts is that the switch reaches it.
    module = nn.Sequential(nn.SyncBatchNorm(3))
    with frozen_batchnorm(module):
        assert not module[0].track_running_stats
    assert module[0].track_running_stats


def test_eval_mode_keeps_using_running_statistics():
    module, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    module(x)
    module.eval()
    expected = module(x)
    with frozen_batchnorm(module):
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


def test_train_called_inside_does_not_thaw():
    module = nn.BatchNorm1d(3).eval()
    before = statistics(module)
    with frozen_batchnorm(module):
        module.train()
        module(torch.randn(8, 3))
    assert_same(statistics(module), before)


def test_nested_blocks_thaw_only_at_the_outermost():
    module, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    before = statistics(module)
    with frozen_batchnorm(module):
        with frozen_batchnorm(module):
            module(x)
        module(x)
        assert_same(statistics(module), before)
    module(x)
    assert module.num_batches_tracked == 1


def test_an_exception_leaves_the_model_thawed():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ZeroDivisionError), frozen_batchnorm(module):
        raise ZeroDivisionError
    assert module[0].track_running_stats
    assert not module[1].track_running_stats, "a module that never tracked was switched on"
    module(torch.randn(8, 3))
    assert module[0].num_batches_tracked == 1


def test_calling_it_again_and_again_freezes_nothing_for_good():
    module, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    for _ in range(3):
        module(x)
        with frozen_batchnorm(module):
            module(x)
    assert module.num_batches_tracked == 3
