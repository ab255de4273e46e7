"""Configurations from YAML: one level of ``base:``, ``key=value`` overrides, every problem at once with its line."""

from mmpeft.configuration.display import as_yaml, resolved
from mmpeft.configuration.document import Document, load_config, read_document

__all__ = ["Document", "as_yaml", "load_config", "read_document", "resolved"]
