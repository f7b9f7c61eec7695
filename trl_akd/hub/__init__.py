"""Model cards, dataset cards, and uploads to the Hub."""
