"""What an output copies from its source, by name. Whatever is not named here is not copied.

Left out on purpose: dose and exposure (a reader of doses must not count them twice), contrast, vendors'
private groups, smallest and largest pixel values, padding values, the scanner's windows and its performed
procedure step.
"""

from __future__ import annotations

import re
from typing import Final

from pydicom.dataset import Dataset

from node import tags
from node.outputs.encoding import copy_element
from node.uids import derive_uid

CHARACTER_SET: Final = ("SpecificCharacterSet", "TimezoneOffsetFromUTC")

PATIENT: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientBirthDateInAlternativeCalendar",
    "PatientAlternativeCalendar",
    "PatientSex",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "QualityControlSubject",
    "EthnicGroup",
    "EthnicGroupCodeSequence",
    "PatientComments",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "IssuerOfClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
)
"""Patient and Clinical Trial Subject modules (PS3.3 C.7.1)."""

STUDY: Final = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "StudyID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "PhysiciansOfRecord",
    "PhysiciansOfRecordIdentificationSequence",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansReadingStudyIdentificationSequence",
    "RequestingService",
    "RequestingServiceCodeSequence",
    "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientBodyMassIndex",
    "PatientSexNeutered",
    "Occupation",
    "AdditionalPatientHistory",
    "PregnancyStatus",
    "MedicalAlerts",
    "Allergies",
    "SmokingStatus",
    "LastMenstrualDate",
    "PatientState",
    "ReasonForVisit",
    "ReasonForVisitCodeSequence",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID",
    "ServiceEpisodeDescription",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "LongitudinalTemporalOffsetFromEvent",
    "LongitudinalTemporalEventType",
    "ConsentForClinicalTrialUseSequence",
    "LongitudinalTemporalInformationModified",
)
"""General Study, Patient Study and Clinical Trial Study modules (PS3.3 C.7.2); references to retired study
management objects stay behind."""

SERIES: Final = ("PatientPosition", "RequestAttributesSequence", "ProtocolName")
"""What the new series shares with its source (PS3.3 C.7.3.1), besides the body part."""

FRAME_OF_REFERENCE: Final = ("FrameOfReferenceUID", "PositionReferenceIndicator")

LOSSY: Final = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
"""Once lossy is always lossy (PS3.3 C.7.6.1.1.5)."""

SLICE: Final = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceLocation",
    "AcquisitionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "KVP",
    "DataCollectionDiameter",
    "ReconstructionDiameter",
    "GantryDetectorTilt",
    "TableHeight",
    "RotationDirection",
    "ConvolutionKernel",
)
"""Image Plane and what still holds of the acquisition (PS3.3 C.7.6.2, C.8.2.1), by slice."""

TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "PositionReferenceIndicator",
    "PatientPosition",
)
"""Elements every composite object must carry, empty where nothing is known (PS3.5 7.4.3)."""

TYPE_2_OF_A_CT_SLICE: Final = ("SliceThickness", "AcquisitionNumber", "KVP")

# fmt: off
UNPAIRED_BODY_PARTS: Final = frozenset({
    "ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CEREBELLUM", "CERVIX", "CHEST",
    "CHESTABDOMEN", "CHESTABDPELVIS", "CIRCLEOFWILLIS", "COCCYX", "COLON", "CORONARYARTERY", "CSPINE",
    "CTSPINE", "DUODENUM", "ESOPHAGUS", "FACE", "GALLBLADDER", "HEAD", "HEADNECK", "HEART", "ILEUM", "JAW",
    "JEJUNUM", "LARYNX", "LIVER", "LSPINE", "LSSPINE", "MAXILLA", "MEDIASTINUM", "MOUTH", "NECK",
    "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "PANCREAS", "PELVIS", "PENIS", "PHARYNX",
    "PROSTATE", "RECTUM", "SCALP", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH", "THYMUS",
    "THYROID", "TLSPINE", "TRACHEA", "TSPINE", "URETHRA", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY",
})
# fmt: on
"""Body parts of PS3.16 annex L without a left and a right: no Laterality beside them (PS3.3 C.7.3.1)."""

_CODE_STRING = re.compile(r"[A-Z0-9 _]{1,16}")


def copy_elements(source: Dataset, target: Dataset, keywords: tuple[str, ...]) -> None:
    """Copy the named elements that ``source`` has."""
    for keyword in keywords:
        copy_element(source, target, keyword)


def fill_empty(target: Dataset, keywords: tuple[str, ...]) -> None:
    """Add the named elements that ``target`` lacks, without a value."""
    for keyword in keywords:
        if keyword not in target:
            setattr(target, keyword, None)


def copy_identity(source: Dataset, target: Dataset) -> None:
    """Patient, study and what the series shares with ``source``: the same study in the same space.

    A source without a frame of reference gets one derived from its series UID: all its outputs share it.
    """
    copy_elements(source, target, CHARACTER_SET + PATIENT + STUDY + SERIES + FRAME_OF_REFERENCE)
    for keyword in CHARACTER_SET:
        if not tags.text(source, keyword):
            target.pop(keyword, None)
    fill_empty(target, TYPE_2)
    copy_body_part(source, target)
    if not tags.text(source, "FrameOfReferenceUID"):
        target.FrameOfReferenceUID = derive_uid("frame-of-reference", tags.text(source, "SeriesInstanceUID"))


def copy_body_part(source: Dataset, target: Dataset) -> None:
    """Body part and side. Laterality is empty where a side may exist and the source names none (type 2C)."""
    part = tags.text(source, "BodyPartExamined")
    if _CODE_STRING.fullmatch(part):
        copy_element(source, target, "BodyPartExamined")
    if part in UNPAIRED_BODY_PARTS:
        return
    if tags.text(source, "Laterality") in {"L", "R"}:
        copy_element(source, target, "Laterality")
    else:
        target.Laterality = None


def copy_lossy(source: Dataset, target: Dataset) -> None:
    """Whether the pixels were ever lossy, where the source says so."""
    if tags.text(source, "LossyImageCompression") in {"00", "01"}:
        copy_elements(source, target, LOSSY)
