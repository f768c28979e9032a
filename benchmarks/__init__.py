"""Comparisons within one run, reported as ratios; none is a timed test."""
