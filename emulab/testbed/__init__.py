"""The testbed as the command line and experiments use it: six nodes, their guests, their links, whatever engine they run on."""

from emulab.testbed.testbed import Testbed

__all__ = ["Testbed"]
