# SPDX-License-Identifier: Apache-2.0
"""Turn one run folder into numbers, figures and one page that needs nothing else: ``build_report(run_dir)``."""

from tempo_verl.report.page import build_report, print_table
from tempo_verl.report.results import Results

__all__ = ["Results", "build_report", "print_table"]
