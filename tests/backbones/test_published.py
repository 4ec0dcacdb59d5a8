"""The published sizes on the meta device: their settings can be read off their tensors, under either names."""

import pytest
import torch

from trainer.backbones import backbone, trainable

NOT_IN_TENSORS = ("sample_size", "axes_lens")  # tables made on demand


@pytest.mark.parametrize("name", [name for name in trainable() if name != "digits"])
def test_settings_read_off_the_tensors(name):
    known = backbone(name)
    with torch.device("meta"):
        wanted = known.skeleton()
        tensors = known.from_file(known.to_file(wanted.state_dict()))
        settings = known.architecture({key: tuple(t.shape) for key, t in tensors.items()})
        model = type(wanted)(**settings)
    shapes, found = ({k: v.shape for k, v in m.state_dict().items()} for m in (wanted, model))
    assert found == shapes
    plain = lambda v: list(v) if isinstance(v, (list, tuple)) else v
    for key, value in wanted.config.items():
        if key[0] != "_" and key not in NOT_IN_TENSORS:
            assert plain(model.config[key]) == plain(value), key
