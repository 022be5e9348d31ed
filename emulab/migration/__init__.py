"""Live migration of a guest from one node's agent to another's.

``departure`` and ``destination`` hold the two sides of one migration as steps, ``strategies`` the order of these steps; the other modules
are what they use: ``channel`` (authenticated connection), ``page_sender`` and ``page_receiver`` (memory on the wire), ``layer`` (writable
layer), ``live`` and ``rounds`` (pre-copy, and when to stop it), ``prefill`` (memory filled before the freeze), ``hold`` (frames during the
blackout), ``journal`` (the commit on disk).
"""
