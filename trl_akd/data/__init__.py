"""From rows to batches: prompt templates, tokenisation, vocabulary proof and collators.

Import from the modules themselves; this file stays empty so that `trl_akd.data.templates` costs no third-party import.
"""
