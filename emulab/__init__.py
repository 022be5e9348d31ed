"""emulab: a distributed emulation testbed in containers that measures what a live migration costs the users of a service."""

__version__ = "0.1.0"
