import math

import pytest

from trainer import TrainerError
from trainer.data.buckets import Buckets


@pytest.mark.parametrize("resolution, multiple, aspect", [(1024, 16, 2.0), (512, 32, 3.0), (1000, 16, 2.0), (32, 8, 1.0)])
def test_sizes(resolution, multiple, aspect):
    sizes = Buckets(resolution, multiple, aspect).sizes()
    side = resolution // multiple * multiple
    assert (side, side) in sizes
    for height, width in sizes:
        assert height % multiple == 0 == width % multiple
        assert height * width <= side**2
        assert max(height, width) <= aspect * min(height, width)
        assert (width, height) in sizes
        assert height * width > 0.8 * side**2 or multiple > side / 8


def test_squares_only():
    assert Buckets(1024, 16, 1.0).sizes() == [(1024, 1024)]


@pytest.mark.parametrize("height, width", [(3000, 2000), (1080, 1920), (100, 101), (10, 10000), (37, 91)])
def test_nearest_is_the_nearest(height, width):
    buckets = Buckets(1024, 16, 2.0)
    got = buckets.nearest(height, width)

    def off(size):
        return abs(math.log(size[1] / size[0]) - math.log(width / height))

    assert off(got) <= min(map(off, buckets.sizes())) + 1e-8


def test_aspects():
    assert Buckets(1024, 16, 2.0).parse("1:1,16:9") == [(1024, 1024), Buckets(1024, 16, 2.0).nearest(9, 16)]


@pytest.mark.parametrize("aspects", ["", "1", "1:0", "0:1", "a:b", "1:2:3", "-1:1"])
def test_bad_aspects(aspects):
    with pytest.raises(TrainerError, match="aspects is"):
        Buckets(1024, 16, 2.0).parse(aspects)


@pytest.mark.parametrize("values, name", [((8, 16, 2.0), "resolution"), ((64, 16, 0.5), "aspect")])
def test_bad_values(values, name):
    with pytest.raises(TrainerError, match=name):
        Buckets(*values)
