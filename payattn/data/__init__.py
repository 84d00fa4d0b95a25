"""Data sets as tensors on a device: the embedded set, known sets, own files; augmentation; batches."""

from payattn.data.augment import Augment
from payattn.data.images import ImageSet, batches
from payattn.data.strokes import glyphs

__all__ = ["Augment", "ImageSet", "batches", "glyphs"]
