"""A multi-phase abdomen made from a seed: the same patient unenhanced, arterial and portal venous.

Layers, each knowing only those before it: shapes (implicit functions) → parts → enhancement → body, organs,
vessels, lesions → anatomy (a patient) → breathing, noise, render → phantom.
"""

from engine.phantom.anatomy import Patient, draw_patient
from engine.phantom.enhancement import PHASES
from engine.phantom.labels import LABELS
from engine.phantom.organ_means import organ_means
from engine.phantom.phantom import Box, Phantom, PhantomOptions, make_phantom

__all__ = [
    "LABELS",
    "PHASES",
    "Box",
    "Patient",
    "Phantom",
    "PhantomOptions",
    "draw_patient",
    "make_phantom",
    "organ_means",
]
