"""Sharing results: ``pedbench export`` packs a finished plan into one file, ``pedbench import``
checks such a file and unpacks it below ``imported/``. Explained in docs/sharing.md.

A bundle is a zip laid out as the results folder, with an index ``bundle.json`` that holds the
sha256 of every other file. It holds no image.
"""

from pedbench.bundle.export import describe, export_bundle
from pedbench.bundle.unpack import import_bundle

__all__ = ["describe", "export_bundle", "import_bundle"]
