"""Who is who in a converted folder: pseudonyms, and the key and the list that they come from.

A pseudonym is an HMAC-SHA256 of the identifiers with a key that is drawn once and kept in ``.pseudonym-key``,
readable by its owner alone. Series converted later with the same key get the same pseudonyms; who has the
list of cases and not the key cannot try identifiers.

A PatientID counts within its IssuerOfPatientID: two hospitals may give two patients one number. The same
patient's studies may carry the issuer once and lack it once; ``.pseudonyms.tsv`` remembers with which issuers
a number was seen, all as HMACs, so that these studies are one patient's and lie on one side of a split.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from pydicom.dataset import Dataset

from node import tags

KEY = ".pseudonym-key"
KEY_BYTES = 32
SEEN = ".pseudonyms.tsv"
"""Lines of number, issuer, patient: a PatientID with an issuer ("" for none) and whose it was taken for."""
DIGITS = 12
"""Hexadecimal digits of a pseudonym: among ten thousand patients two share one once in five million lists."""


class PatientUnclear(Exception):
    """A number without an issuer that several patients have: whose series it is nobody can tell."""


class Pseudonyms:
    """The pseudonyms of one folder. Raises OSError where key or list cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._key = _key_of(folder / KEY)
        self._file = folder / SEEN
        lines = self._file.read_text(encoding="ascii").splitlines() if self._file.exists() else []
        self._seen: dict[str, dict[str, str]] = {}
        for number, issuer, patient in (line.split("\t") for line in lines):
            self._seen.setdefault(number, {})[issuer] = patient

    def patient(self, header: Dataset) -> str:
        """Of PatientID and its issuer; else of name and birth date; else of the study alone.

        Raises PatientUnclear.
        """
        if number := tags.text(header, "PatientID"):
            return self._numbered(number, tags.text(header, "IssuerOfPatientID"))
        if name := tags.text(header, "PatientName"):
            return self._pseudonym("patient", name, tags.text(header, "PatientBirthDate"))
        return self._pseudonym("patient", *_study_identifiers(header))

    def study(self, header: Dataset) -> str:
        """Of the study."""
        return self._pseudonym("study", *_study_identifiers(header))

    def _numbered(self, number: str, issuer: str) -> str:
        """Without an issuer, whoever has that number; with one, whoever had it without or with this one."""
        row, column = self._digest("number", number), issuer and self._digest("issuer", issuer)
        known = self._seen.setdefault(row, {})
        if column in known:
            return known[column]
        if not issuer and len(set(known.values())) > 1:
            raise PatientUnclear(
                "the PatientID has no issuer (0010,0021), and patients of several issuers have that number:"
                " write the issuer into the series' headers, or leave it out"
            )
        same = (patient for seen, patient in known.items() if not (seen and issuer))
        patient = next(same, self._pseudonym("patient", number, issuer))
        known[column] = patient
        with open(self._file, "a", encoding="ascii", opener=_own) as stream:
            stream.write(f"{row}\t{column}\t{patient}\n")
        return patient

    def _digest(self, kind: str, *identifiers: str) -> str:
        text = "\0".join((kind, *identifiers))
        return hmac.digest(self._key, text.encode(), "sha256").hex()[:DIGITS]

    def _pseudonym(self, kind: str, *identifiers: str) -> str:
        return kind[0] + self._digest(kind, *identifiers)


def _key_of(file: Path) -> bytes:
    """The key, drawn where there is none yet."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return bytes.fromhex(file.read_text(encoding="ascii"))
    key = secrets.token_bytes(KEY_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(key.hex())
    return key


def _own(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)


def _study_identifiers(header: Dataset) -> list[str]:
    """StudyInstanceUID, or what else tells one examination from another."""
    uid = tags.text(header, "StudyInstanceUID")
    others = ("StudyDate", "StudyTime", "AccessionNumber", "PatientID", "SeriesInstanceUID")
    return [uid] if uid else [tags.text(header, keyword) for keyword in others]
