"""Model cards, dataset cards, and uploads to the Hub."""

REPOSITORY = "https://github.com/trl-akd/trl_akd"
"""Address of this package's repository, for cards and installation."""
