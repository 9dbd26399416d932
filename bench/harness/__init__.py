"""What the comparisons share: problems, entrants, timing, records of results, their tables and figures."""
