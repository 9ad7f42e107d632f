"""``pedbench compare A B``: two variants, of these results or of an import, test against test."""

from pedbench.versus.compare import Versus, versus
from pedbench.versus.text import as_text

__all__ = ["Versus", "as_text", "versus"]
