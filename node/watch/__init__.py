"""How the node is: what happened, in one log line a move and in figures, and whether it can work.

``follow`` reads the ledger's events as they come, whoever wrote them: lanes, workers, commands. ``chronicle``
makes log lines and counts of them, ``figures`` what Prometheus reads, ``site`` serves it over HTTP. Nothing
here names a patient: states, codes, names of destinations, numbers of jobs.
"""
