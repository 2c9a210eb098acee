"""Reports: recorded facts become report.json, report.html, sample grids and comparisons.

Everything here reads facts and arranges them; nothing is measured or computed anew.
"""
