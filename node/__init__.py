"""DICOM and memory: the only room that speaks DICOM and the only one that remembers."""
