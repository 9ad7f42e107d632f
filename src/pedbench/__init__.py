"""pedbench: parameter-efficient fine-tuning of CLIP on pedestrian attribute recognition."""

from pedbench import _torchvision_guard

__version__ = "0.1.0"

_torchvision_guard.install()
