"""Results that must not be shown any longer (IHE Radiology, Imaging Object Change Management).

::

    late slice ──> superseded ─┐
                               ├─> note    a Key Object Selection that names the old instances
    s2node recall ─> recalled ─┘          -> a job of its own, which the deliver lanes bring where these went

``note`` makes the object, ``retract`` decides which and records it, ``lane`` tries it again where it fails.
"""
