"""Scenarios for the Olio-like site, found by name: `emulab experiment <name>`."""
