"""Who did what with whose images: DICOM audit messages (PS3.15 A.5), to a file and to syslog over TLS (A.6).

::

    ledger's events ──> account   what an auditor has to know of it
    alerts of the SCP ─> alarms   the same peer once a minute, so that nobody fills the disk with it
                         message  XML as the standard's schema wants it
                         sink     the file or the queue, each with a mark: neither waits for the other
                         trail    a file that rotates, and a folder of what waits for the repository
                         syslog   RFC 5424 over RFC 5425

Here, and nowhere else, a patient is named: never log, measure or raise what is in a message. An audit that
cannot be written or sent stops nothing: its mark in the ledger stays where it is, and the log says so.
"""
