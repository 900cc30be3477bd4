"""This machine on the page: gauges, and a plan as bars."""
