"""``make bench``: our migration beside what a user would do today, same guest, same load, same link.

On the user's machine: ``run`` (the workflow) takes its list of measurements from ``figures``, moves guests with ``movers`` and writes
``rows`` and a ``page``. On the nodes: ``watch`` looks at a guest from outside, ``clients`` makes the load, ``guest_program`` is the
guest whose memory is known, and the baselines are ``source`` and ``receiver``.
"""
