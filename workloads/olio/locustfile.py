"""Olio under Locust.

``python -m emulab.load.run`` uses it for measured runs. By hand: ``locust -f workloads/olio/locustfile.py --host http://198.18.0.100:80``
"""

from emulab.load.binding import user_class
from workloads.olio.driver import workload

OlioUser = user_class("OlioUser", workload)
