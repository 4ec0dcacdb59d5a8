"""Training data: rows from many sources, aspect buckets, a cache of their encodings, batches by number."""

from .cache import Cache, Encoder, free
from .dataset import CachedData, look, prepare
from .request import DataRequest

__all__ = ["Cache", "CachedData", "Encoder", "DataRequest", "free", "look", "prepare"]
