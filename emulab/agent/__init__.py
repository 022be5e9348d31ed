"""The process that serves one node: what it is asked for, its calls to other agents, and what it finds after a restart."""
