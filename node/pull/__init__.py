"""Fetching from archives: C-FIND what they hold, then C-MOVE to ourselves or C-GET (PS3.4 Annex C).

::

    RECEIVING, quiet ──> complete    does the archive hold more of it?         one lane an archive
                         query       C-FIND, the instances of one series
                         retrieve    C-MOVE to our own port, or C-GET          only what is missing
                         fetch       the same for a person: a study or a series

What is fetched goes through `node/receive.py` like what is sent: nothing is checked less, and a synthetic
object is dropped here too. No series waits for an archive for ever: ``answer`` says which answers are worth
another try, and the settings how many.
"""
