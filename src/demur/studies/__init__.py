"""Studies: questions about detectors, each answered by a table with plots and findings."""
