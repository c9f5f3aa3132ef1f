"""Images: from folders, files and arrays to batches of a model's inputs."""

from evoquant.data.loading import load_images
from evoquant.data.source import ImageBatchSource, check_disjoint
from evoquant.data.transform import Transform

__all__ = ["ImageBatchSource", "Transform", "check_disjoint", "load_images"]
