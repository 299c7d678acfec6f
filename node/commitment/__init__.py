"""Storage commitment, both ways (PS3.4 Annex J, Push Model).

::

    DELIVERED ──> ask      N-ACTION to the archive, or C-FIND where it has none    one lane a destination
                  hear     N-EVENT-REPORT, on the same or on a new association   -> COMMITTED, or BUILT again
    sender ─────> hear     N-ACTION of a sender, kept in the ledger before it is answered
                  report   what is really here, read back, by N-EVENT-REPORT       one lane a requester

``wire`` has the data sets and the table of failure reasons. A question is in the ledger before it is asked,
so its report may come at any time, to any process that runs then.
"""
