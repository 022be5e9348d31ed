"""A run folder to something a person can judge: report.html and SVG figures, the terminal's summary, comparison of runs."""

from emulab.report.build import build_report
from emulab.report.compare import compare_runs, comparison_html, comparison_json, comparison_table, print_comparison
from emulab.report.text import print_summary

__all__ = ["build_report", "compare_runs", "comparison_html", "comparison_json", "comparison_table", "print_comparison", "print_summary"]
