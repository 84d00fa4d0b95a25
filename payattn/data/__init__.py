"""Data sets as tensors on a device: the embedded set, known sets, own files; augmentation; batches."""

from payattn.data.augment import Augment
from payattn.data.files import load
from payattn.data.images import ImageSet, batches, share_of
from payattn.data.known import CUB_PARTS
from payattn.data.splits import balanced, held_out, per_class
from payattn.data.stream import Data, FileSet
from payattn.data.strokes import glyphs, noise_matrix, noisy_labels

__all__ = [
    "CUB_PARTS",
    "Augment",
    "Data",
    "FileSet",
    "ImageSet",
    "balanced",
    "batches",
    "glyphs",
    "held_out",
    "load",
    "noise_matrix",
    "noisy_labels",
    "per_class",
    "share_of",
]
