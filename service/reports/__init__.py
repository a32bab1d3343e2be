"""A comparison to look at: thumbnails, difference maps, the contact sheet, the reports in HTML and Markdown. No torch.

Everything here is a pure function of a `Comparison` and of encoded pictures by the index of their cell.
"""

from service.reports.differences import difference_map
from service.reports.html import html_report
from service.reports.markdown import markdown_report
from service.reports.sheet import contact_sheet
from service.reports.thumbnails import decoded, thumbnail

__all__ = ["contact_sheet", "decoded", "difference_map", "html_report", "markdown_report", "thumbnail"]
