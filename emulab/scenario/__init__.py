"""The typed description of an experiment: YAML in, every problem told at once, every default resolved, JSON Schema out."""

from emulab.scenario.checks import NodeSize
from emulab.scenario.loading import load_scenario, parse_scenario, shipped_scenarios, to_yaml
from emulab.scenario.model import AUTO, HEAD, Guest, Load, Migration, Probe, Scenario, Sla, Topology, Workload, scenario_schema
from emulab.scenario.resolve import PlannedMigration, plan, resolve, workers_needed

__all__ = [
    "AUTO",
    "HEAD",
    "Guest",
    "Load",
    "Migration",
    "NodeSize",
    "PlannedMigration",
    "Probe",
    "Scenario",
    "Sla",
    "Topology",
    "Workload",
    "load_scenario",
    "parse_scenario",
    "plan",
    "resolve",
    "scenario_schema",
    "shipped_scenarios",
    "to_yaml",
    "workers_needed",
]
