"""One HTML page on a set of bundles: `gather` reads and measures, `page` draws."""

from edgevlm.report.gather import Findings, ReportOptions, gather
from edgevlm.report.page import page

__all__ = ("Findings", "ReportOptions", "gather", "page")
