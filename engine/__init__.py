"""Arrays: a volume in, a volume out. Knows no DICOM, no network and no torch."""
