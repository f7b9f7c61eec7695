"""Dataset formats, prompt templates, tokenization, vocabulary checks and collators.

Import from the modules: this file is empty so that importing `trl_akd.data.templates` loads no third-party package.
"""
