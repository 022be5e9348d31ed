"""Live migration of a guest from one node's agent to another's.

``source`` and ``destination`` hold the two sides of one migration, each as a list of steps; the other modules are what they use:
``channel`` (authenticated connection), ``pages`` (memory on the wire), ``layer`` (writable layer), ``rounds`` (when to stop), ``hold``
(frames during the blackout), ``journal`` (the commit decision on disk).
"""
