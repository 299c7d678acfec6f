"""``s2node train prepare``: converted cases become registered, checked pairs, split by patient.

cohort (who has what) → register (rigid, then deformable) → checks (measure, judge) → run (files) → page (QC).
"""
