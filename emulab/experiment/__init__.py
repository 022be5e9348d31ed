"""One experiment from a scenario to a report: ``workflow`` is the list of steps, the other modules hold the steps."""
