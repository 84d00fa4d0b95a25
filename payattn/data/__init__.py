"""Data sets as tensors on a device: the embedded set, known sets, own files; augmentation; batches."""

from payattn.data.augment import Augment
from payattn.data.files import balanced, held_out, load
from payattn.data.images import ImageSet, batches
from payattn.data.strokes import glyphs, noisy_labels

__all__ = ["Augment", "ImageSet", "balanced", "batches", "glyphs", "held_out", "load", "noisy_labels"]
