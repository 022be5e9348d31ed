"""Post-copy: the guest runs at the destination before its memory is there.

``server``   a process on the source: reads pages of the frozen guest and ends it when the last one has arrived
``daemon``   a process on the destination: answers the page faults of the restored guest, fetches the rest in the background
``handover`` the agents' side of both

Both processes outlive their agents: a guest that waits for a page cannot wait for an agent to be started again.
"""
