"""Generating load: who does what and when (``model``), on which connections (``client``), under Locust (``binding``), and the prober.

``run`` is the program; ``records`` reads what it wrote. Only ``records`` needs pandas; only ``binding`` and ``master`` import Locust.
"""
