"""Report of a run as one HTML file: scores, curves, outcomes and sample programs, from the files in its folder."""

from .writer import save_report, write_report

__all__ = ["save_report", "write_report"]
