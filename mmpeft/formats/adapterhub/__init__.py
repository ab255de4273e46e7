"""Directories of AdapterHub's library ``adapters``."""
