"""Whether served traffic has changed, since when, and what: `DriftMonitor` says whether, `attribute` what to do."""
