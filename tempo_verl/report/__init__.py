# SPDX-License-Identifier: Apache-2.0
"""Turn run folders into numbers, figures and one page that needs nothing else.

The report of one run is a comparison of one: ``build_report(run_dir)``, ``build_comparison(run_dirs, out)``.
"""

from tempo_verl.report.card import write_cards
from tempo_verl.report.results import Results
from tempo_verl.report.tables import print_table
from tempo_verl.report.write import build_comparison, build_report

__all__ = ["Results", "build_comparison", "build_report", "print_table", "write_cards"]
