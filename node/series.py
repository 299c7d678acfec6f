"""Files to one :class:`SourceSeries`: sorted, on a regular grid, in Hounsfield units, or rejected.

What may be wrong with a stranger's files ends in :class:`~node.errors.SeriesRejected`; only our own disk's
failures (OSError) pass through. Sizes are checked before anything is decoded.

Axes (PS3.3 C.7.6.2.1.1): the first three numbers of ImageOrientationPatient point along a row, where the
*column* index grows; the last three down a column, where the *row* index grows. The first number of
PixelSpacing is the distance between rows. Slices are sorted along the cross product of the two.
"""

from __future__ import annotations

import io
import mmap
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from config.intake import SeriesLimits
from engine.synthesis import Finding
from engine.volume import Float32, Geometry, Vec3, Volume
from node import tags
from node.codestream import coded_size
from node.errors import SeriesRejected
from node.header import LEAST_ELEMENT_BYTES, has_more_elements

AIR_HU = -1000.0
"""What padding is painted with."""
PADDING_BELOW_HU = -900.0
"""A PixelPaddingValue that tissue could have, so above this, is not believed: it would paint air over it."""
LOWEST_HU = -1024.0
"""Scanners store nothing below it; what is below is padding, declared or not."""
HIGHEST_HU = 3500.0
"""Above it there is only metal."""
IMPLAUSIBLE_SHARE = 0.05
"""Share of voxels above :data:`HIGHEST_HU` at which the numbers are not Hounsfield units."""

DECODERS = 2
"""Files decoded at once: more would wait for one another in the interpreter."""

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS_OF_FRAMES = frozenset({Tag(SHARED), Tag(PER_FRAME)})
LONGEST_VALUE = 65_536
"""Bytes of a value, in a header, beyond which only the functional groups are of use."""
ELEMENT_BYTES = 256
"""What an element takes beside its value, about."""
FUNCTIONAL_GROUPS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "CTXRayDetailsSequence",
    "FrameContentSequence",
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)
"""Macros of a multi-frame object (PS3.3 C.7.6.16.2, C.8.15.3) whose attributes a flattened header carries."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SourceSeries:
    """A series as the engine wants it, and the headers its synthesis will be written with.

    ``headers`` are in slice order, one a slice, without pixels. For a multi-frame object each is the
    flattened header of one frame; ``frame_numbers`` holds its number, from 1 (None for a classic slice).
    ``findings`` are what a reader should know although the series was accepted.
    """

    headers: tuple[Dataset, ...]
    volume: Volume
    findings: tuple[Finding, ...] = ()
    frame_numbers: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class _Slice:
    """One slice before decoding: its (flattened) header, the file it is in and the frame there, from 0."""

    header: Dataset
    file: int
    frame: int | None


def read_series(
    paths: Sequence[Path], limits: SeriesLimits, headers: Sequence[Dataset] | None = None
) -> SourceSeries:
    """Read the files of one series; raises SeriesRejected with a stable code.

    ``headers`` are those of ``paths`` where :func:`read_headers` has read them already.
    """
    headers = read_headers(paths, limits) if headers is None else headers
    _check_one_subject(headers)
    slices = _slices_of(headers, limits)
    order, geometry = _arrange([one.header for one in slices], limits)
    slices = [slices[index] for index in order]
    _check_sizes(slices, geometry, limits)
    hu, findings = _decode_all(paths, slices, geometry)
    _check_plausible(hu)
    return SourceSeries(
        headers=tuple(one.header for one in slices),
        volume=Volume(hu, geometry),
        findings=(*_header_findings(slices[0].header), *findings),
        frame_numbers=tuple(None if one.frame is None else one.frame + 1 for one in slices),
    )


def read_headers(paths: Sequence[Path], limits: SeriesLimits | None = None) -> list[Dataset]:
    """The headers of DICOM files, without pixels, in the order of ``paths``. Raises SeriesRejected."""
    limits = limits or SeriesLimits()
    if len(paths) > limits.max_files:
        raise SeriesRejected("TOO-LARGE", f"{len(paths)} files, at most {limits.max_files} are read")
    headers, held = [], 0
    for path in paths:
        headers.append(read_header(path, limits))
        held += _held_bytes(headers[-1])
        if held > limits.max_header_bytes:
            raise SeriesRejected("TOO-LARGE", f"headers take more than {limits.max_header_bytes} bytes")
    return headers


def read_header(path: Path, limits: SeriesLimits) -> Dataset:
    """One header without pixels, and without values so long that the node has no use for them.

    Raises SeriesRejected: NOT-DICOM, UNDECODABLE or TOO-LARGE.
    """
    with path.open("rb") as file, _broken_is("UNDECODABLE", "the header cannot be parsed"):
        _check_file(file, limits)
        header = _parse(file, stop_before_pixels=True)
    header.buffer = None  # pydicom holds a whole inflated file there
    for element in list(header.values()):
        if isinstance(element, RawDataElement) and _is_ballast(element):
            del header[element.tag]
    return header


def _is_ballast(element: RawDataElement) -> bool:
    return len(element.value or b"") > LONGEST_VALUE and element.tag not in GROUPS_OF_FRAMES


def _held_bytes(header: Dataset) -> int:
    """About how much memory a header takes; what is undecoded takes little more than its bytes."""
    held = 0
    for element in header.values():
        held += ELEMENT_BYTES
        if isinstance(element, RawDataElement):
            held += len(element.value or b"")
        elif element.VR == "SQ":
            held += sum(map(_held_bytes, element.value))
    return held


def grid_of(headers: Sequence[Dataset], limits: SeriesLimits | None = None) -> Geometry:
    """The regular grid the headers describe, in any order; raises SeriesRejected (NOT-A-GRID …)."""
    limits = limits or SeriesLimits()
    slices = _slices_of(headers, limits)
    return _arrange([one.header for one in slices], limits)[1]


def frames_of(header: Dataset) -> list[Dataset]:
    """One header a slice: the header itself, or a flattened copy for every frame of a multi-frame object.

    Raises SeriesRejected (UNDECODABLE) where functional groups are broken.
    """
    shared = tags.items(header, SHARED)
    per_frame = tags.items(header, PER_FRAME)
    if not shared and not per_frame:
        return [header]
    with _broken_is("UNDECODABLE", "the functional groups cannot be parsed"):
        base = _without(header, SHARED, PER_FRAME, "NumberOfFrames")
        return [_flattened(base, [*shared[:1], groups], at) for at, groups in enumerate(per_frame)]


# --- files ----------------------------------------------------------------------------------------


@contextmanager
def _broken_is(code: str, reason: str) -> Iterator[None]:
    """What a parser or decoder raises on broken bytes becomes a rejection; its warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InvalidDicomError:
        raise SeriesRejected("NOT-DICOM", "the file is not a DICOM file") from None
    except MemoryError as error:
        raise SeriesRejected("TOO-LARGE", f"{reason}: not enough memory") from error
    except (OSError, *tags.PARSE_ERRORS) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's; pydicom's own has no number
            raise
        raise SeriesRejected(code, f"{reason} ({type(error).__name__})") from error


def _check_file(file: BinaryIO, limits: SeriesLimits) -> None:
    """Sizes, before anything is parsed or inflated as a whole."""
    size = file.seek(0, io.SEEK_END)
    if size > limits.max_file_bytes:
        raise SeriesRejected("TOO-LARGE", f"a file of {size} bytes, at most {limits.max_file_bytes} are read")
    file.seek(0)
    start = file.read(144)
    is_part_10 = start[128:136] == b"DICM\x02\x00\x00\x00"
    data_at = 144 + int.from_bytes(start[140:144], "little") if is_part_10 else 0
    file.seek(0)
    meta = file.read(min(data_at, 65_536))
    if DeflatedExplicitVRLittleEndian.encode("ascii") in meta:
        file.seek(data_at)
        _check_elements(memoryview(_inflated(file, limits)), ExplicitVRLittleEndian, limits)
    elif size - data_at > LEAST_ELEMENT_BYTES * limits.max_elements:
        syntax = str(tags.value(read_file_meta_info(file.name), "TransferSyntaxUID")) if is_part_10 else ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
            _check_elements(view[data_at:], syntax, limits)
    file.seek(0)


def _inflated(file: BinaryIO, limits: SeriesLimits) -> bytearray:
    """A Deflated data set (PS3.5 A.5), a piece at a time: pydicom would inflate it in one, however large."""
    inflater, data = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    while piece := inflater.unconsumed_tail or file.read(65_536):
        data += inflater.decompress(piece, 1 << 20)
        if len(data) > limits.max_inflated_bytes:
            raise SeriesRejected("TOO-LARGE", f"inflates to more than {limits.max_inflated_bytes} bytes")
        if inflater.eof:
            break
    return data


def _check_elements(data: memoryview, transfer_syntax_uid: str, limits: SeriesLimits) -> None:
    with data:
        if has_more_elements(data, transfer_syntax_uid, limits.max_elements):
            raise SeriesRejected("TOO-LARGE", f"a file of more than {limits.max_elements} elements")


def _parse(file: BinaryIO, *, stop_before_pixels: bool) -> FileDataset:
    """A data set with or without the Part 10 preamble; raises InvalidDicomError where it is neither."""
    start = file.read(132)
    file.seek(0)
    bare = start[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x01\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")
    if start[128:] != b"DICM" and start[:2] != b"\x02\x00" and not bare:
        raise InvalidDicomError("neither a preamble nor a data set")
    ds = dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
    if tags.value(ds.file_meta, "TransferSyntaxUID") is None:
        implicit = ds.original_encoding[0]
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return ds


def _check_one_subject(headers: Sequence[Dataset]) -> None:
    for keyword, what in (
        ("SeriesInstanceUID", "series"),
        ("StudyInstanceUID", "study"),
        ("PatientID", "patient"),
    ):
        if len({tags.text(header, keyword) for header in headers}) > 1:
            raise SeriesRejected("IDENTITY", f"the files belong to more than one {what}")


# --- frames ---------------------------------------------------------------------------------------


def _slices_of(headers: Sequence[Dataset], limits: SeriesLimits) -> list[_Slice]:
    slices: list[_Slice] = []
    for file, header in enumerate(headers):
        frames = tags.number(header, "NumberOfFrames") or 1
        if len(slices) + frames > limits.max_slices:
            raise SeriesRejected("TOO-LARGE", f"more than {limits.max_slices} slices")
        flat = frames_of(header)
        if len(flat) != frames:
            raise SeriesRejected("NOT-A-GRID", f"{frames:.0f} frames, but positions for {len(flat)}")
        multi = flat[0] is not header
        slices += [_Slice(one, file, at if multi else None) for at, one in enumerate(flat)]
    if not slices:
        raise SeriesRejected("TOO-FEW-SLICES", "no slices at all")
    return slices


def _without(header: Dataset, *keywords: str) -> Dataset:
    """A copy that shares the elements but not the dictionary (``copy.copy`` of a Dataset shares that too)."""
    base = Dataset()
    base.update({element.tag: element for element in header if element.keyword not in keywords})
    return base


def _flattened(base: Dataset, groups: Sequence[Dataset], at: int) -> Dataset:
    """One frame's header: the object's own attributes, then those of its shared and own functional groups."""
    flat = _without(base)
    for group in groups:
        for keyword in FUNCTIONAL_GROUPS:
            for item in tags.items(group, keyword)[:1]:
                flat.update(item)
        for item in tags.items(group, "CTImageFrameTypeSequence")[:1]:
            flat.add_new("ImageType", "CS", tags.words(item, "FrameType") or tags.words(flat, "ImageType"))
        flat.update({element.tag: element for element in group if element.keyword.startswith("Contrast")})
    flat.add_new("InstanceNumber", "IS", at + 1)
    return flat


# --- grid -----------------------------------------------------------------------------------------


def _arrange(headers: Sequence[Dataset], limits: SeriesLimits) -> tuple[list[int], Geometry]:
    """The order of the slices along their normal and the regular grid they form."""
    shape = _common_shape(headers)
    row_cosine, column_cosine = _common_orientation(headers, limits)
    row_mm, column_mm = _common_spacing(headers, limits)
    normal = np.cross(row_cosine, column_cosine)
    positions = np.array([_required(header, "ImagePositionPatient", 3) for header in headers])
    along = positions @ normal
    order = [int(index) for index in np.argsort(along, kind="stable")]
    step = _regular_step(along[order], headers[0], limits)
    _check_upright(positions[order], normal, limits)
    geometry = Geometry(
        shape=(len(headers), *shape),
        spacing_mm=(step, row_mm, column_mm),
        origin_mm=_vec3(positions[order[0]]),
        directions=(_vec3(normal), _vec3(column_cosine), _vec3(row_cosine)),
        frame_of_reference_uid=_common_frame_of_reference(headers),
    )
    return order, geometry


def _vec3(array: Float64) -> Vec3:
    x, y, z = (float(one) for one in array)
    return (x, y, z)


def _required(header: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    found = tags.numbers(header, keyword, count)
    if found is None:
        raise SeriesRejected("NOT-A-GRID", f"{keyword} is missing or is not {count} number{'s'[: count - 1]}")
    return found


def _common_shape(headers: Sequence[Dataset]) -> tuple[int, int]:
    shapes = {(_required(header, "Rows", 1)[0], _required(header, "Columns", 1)[0]) for header in headers}
    if len(shapes) > 1:
        raise SeriesRejected("NOT-A-GRID", f"slices of {len(shapes)} different sizes")
    rows, columns = shapes.pop()
    if min(rows, columns) < 1:
        raise SeriesRejected("NOT-A-GRID", "slices without rows or columns")
    return (int(rows), int(columns))


def _common_orientation(headers: Sequence[Dataset], limits: SeriesLimits) -> tuple[Float64, Float64]:
    """Unit vectors along which the column index and the row index grow, exactly at right angles."""
    cosines = np.array([_required(header, "ImageOrientationPatient", 6) for header in headers])
    if np.abs(cosines - cosines[0]).max() > limits.orientation_tolerance:
        raise SeriesRejected("NOT-A-GRID", "slices of different orientation")
    row, column = cosines[0, :3], cosines[0, 3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > 0.01 or abs(row @ column) > 0.01:
        raise SeriesRejected("NOT-A-GRID", "ImageOrientationPatient is not two unit vectors at right angles")
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _common_spacing(headers: Sequence[Dataset], limits: SeriesLimits) -> tuple[float, float]:
    """(between rows, between columns) in mm."""
    spacings = np.array([_required(header, "PixelSpacing", 2) for header in headers])
    if spacings.min() <= 0:
        raise SeriesRejected("NOT-A-GRID", "PixelSpacing is not positive")
    if np.abs(spacings / spacings[0] - 1).max() > limits.spacing_tolerance_share:
        raise SeriesRejected("NOT-A-GRID", "slices of different PixelSpacing")
    return (float(spacings[0, 0]), float(spacings[0, 1]))


def _regular_step(along: Float64, first: Dataset, limits: SeriesLimits) -> float:
    """The slice spacing in mm of sorted places along the normal."""
    if len(along) == 1:
        stated = tags.number(first, "SpacingBetweenSlices") or tags.number(first, "SliceThickness") or 1.0
        return abs(stated) or 1.0
    gaps = np.diff(along)
    apart = gaps[gaps > min(limits.position_tolerance_mm, float(gaps.max()) / 4)]
    if len(apart) < len(gaps) or not len(apart):
        raise SeriesRejected(
            "NOT-A-GRID", f"{len(gaps) - len(apart)} of {len(along)} slices lie where another one lies"
        )
    step, start = (float(one) for one in np.polyfit(np.arange(len(along)), along, 1))
    off_grid = np.abs(along - (start + step * np.arange(len(along)))).max()
    if off_grid > max(limits.position_tolerance_mm, limits.position_tolerance_share * step):
        raise SeriesRejected(
            "NOT-A-GRID",
            f"slices {gaps.min():.2f} to {gaps.max():.2f} mm apart, most often {np.median(gaps):.2f} mm",
        )
    return step


def _check_upright(positions: Float64, normal: Float64, limits: SeriesLimits) -> None:
    """No gantry tilt: slices are stacked along their normal."""
    away = positions - positions[0]
    along = away @ normal
    sideways = np.linalg.norm(away - np.outer(along, normal), axis=1)
    allowed = limits.position_tolerance_mm + limits.max_shear * along
    if (sideways > allowed).any():
        worst = int(np.argmax(sideways - allowed))
        degrees = np.degrees(np.arctan2(sideways[worst], along[worst]))
        raise SeriesRejected(
            "NOT-A-GRID", f"the gantry was tilted: slices are stacked {degrees:.1f} degrees off"
        )


def _common_frame_of_reference(headers: Sequence[Dataset]) -> str | None:
    uids = {tags.text(header, "FrameOfReferenceUID") for header in headers}
    if len(uids) > 1:
        raise SeriesRejected("NOT-A-GRID", "slices of more than one frame of reference")
    return uids.pop() or None


# --- pixels ---------------------------------------------------------------------------------------


def _check_sizes(slices: Sequence[_Slice], geometry: Geometry, limits: SeriesLimits) -> None:
    count, rows, columns = geometry.shape
    if rows > limits.max_rows or columns > limits.max_columns:
        raise SeriesRejected(
            "TOO-LARGE", f"slices of {rows}x{columns}, at most {limits.max_rows}x{limits.max_columns}"
        )
    if count * rows * columns > limits.max_voxels:
        raise SeriesRejected("TOO-LARGE", f"{count}x{rows}x{columns} voxels, at most {limits.max_voxels}")


def _decode_all(
    paths: Sequence[Path], slices: Sequence[_Slice], geometry: Geometry
) -> tuple[Float32, list[Finding]]:
    """HU of every slice, in order, :data:`DECODERS` files in memory at a time."""
    hu = np.empty(geometry.shape, dtype=np.float32)
    by_file: dict[int, list[int]] = {}
    for index, one in enumerate(slices):
        by_file.setdefault(one.file, []).append(index)

    def decode(file: int) -> Counter[str]:
        ds = _parse(io.BytesIO(paths[file].read_bytes()), stop_before_pixels=False)
        notes: Counter[str] = Counter()
        for index in by_file[file]:
            hu[index] = _slice_hu(ds, slices[index], geometry, notes)
        return notes

    with _broken_is("UNDECODABLE", "the pixel data cannot be decoded"), ThreadPoolExecutor(DECODERS) as pool:
        notes = sum(pool.map(decode, by_file), Counter[str]())
    return hu, [
        Finding(code, f"{PIXEL_NOTES[code]} ({count} slices)") for code, count in sorted(notes.items())
    ]


def _check_plausible(hu: Float32) -> None:
    """Wrong signedness or a missing intercept shows: no body is brighter than bone over a large share."""
    bright = float((hu > HIGHEST_HU).mean())
    if bright > IMPLAUSIBLE_SHARE:
        raise SeriesRejected("NOT-HU", f"{bright:.0%} of the voxels are above {HIGHEST_HU:.0f} HU")


PIXEL_NOTES = {
    "PADDING-REPAINTED": "voxels outside the reconstruction were set to -1000 HU",
    "PADDING-IGNORED": "PixelPaddingValue names a value tissue has, so it was not believed",
}
"""Findings about pixels, counted over the slices."""


def _slice_hu(ds: FileDataset, one: _Slice, geometry: Geometry, notes: Counter[str]) -> Float32:
    stored = _stored_pixels(ds, one.frame or 0, geometry)
    slope, intercept = _rescale(one.header)
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    outside = hu < LOWEST_HU
    padding = _padding_range(ds)
    if padding is not None:
        if max(padding) * slope + intercept <= PADDING_BELOW_HU or not _padding_fits(ds):
            outside |= (stored >= padding[0]) & (stored <= padding[1])
        else:
            notes["PADDING-IGNORED"] += 1
    if outside.any():
        hu[outside] = AIR_HU
        notes["PADDING-REPAINTED"] += 1
    return cast(Float32, hu)


def _stored_pixels(ds: FileDataset, frame: int, geometry: Geometry) -> NDArray[Any]:
    """One frame as stored values; the sizes are those the grid was made from."""
    if "PixelData" not in ds:
        raise SeriesRejected("UNDECODABLE", "there is no pixel data (7FE0,0010)")
    if tags.number(ds, "SamplesPerPixel") != 1 or tags.number(ds, "BitsAllocated") not in (8, 16, 32):
        raise SeriesRejected("UNDECODABLE", "not one sample of 8, 16 or 32 bits a pixel")
    _, rows, columns = geometry.shape
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_codestream(ds, frame, (rows, columns))
    stored = pixel_array(ds, index=frame, raw=True, correct_unused_bits=_padding_fits(ds))
    if stored.shape != (rows, columns):
        raise SeriesRejected("UNDECODABLE", "the decoded frame has another size than the header says")
    return stored


def _check_codestream(ds: Dataset, frame: int, expected: tuple[int, int]) -> None:
    """UNDECODABLE unless the frame says it has the header's size; run lengths (RLE) say none."""
    frames = int(tags.number(ds, "NumberOfFrames") or 1)
    size = coded_size(get_frame(ds.PixelData, frame, number_of_frames=frames))
    if size is None and ds.file_meta.TransferSyntaxUID != RLELossless:
        raise SeriesRejected("UNDECODABLE", "the compressed frame does not say its size where it should")
    if size is not None and size != expected:
        raise SeriesRejected("UNDECODABLE", "the compressed frame has another size than the header says")


def _rescale(header: Dataset) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept (PS3.3 C.7.6.16.2.9, C.8.2.1); HU is implied for originals."""
    slope, intercept = tags.number(header, "RescaleSlope"), tags.number(header, "RescaleIntercept")
    if slope is None or intercept is None or slope == 0:
        raise SeriesRejected("NOT-HU", "RescaleSlope or RescaleIntercept is missing")
    unit = tags.text(header, "RescaleType").upper()
    if unit not in ("", "HU", "US"):
        raise SeriesRejected("NOT-HU", "RescaleType names another unit than HU")
    return (slope, intercept)


def _padding_range(ds: Dataset) -> tuple[int, int] | None:
    """Stored values that are padding (PS3.3 C.7.5.1.1.2), signed as the pixels are: 63536 is then -2000."""
    value = tags.number(ds, "PixelPaddingValue")
    if value is None:
        return None
    limit = tags.number(ds, "PixelPaddingRangeLimit")
    one, other = (_as_stored(ds, int(end)) for end in (value, value if limit is None else limit))
    return (min(one, other), max(one, other))


def _as_stored(ds: Dataset, value: int) -> int:
    bits = int(tags.number(ds, "BitsAllocated") or 16)
    value &= (1 << bits) - 1
    signed = tags.number(ds, "PixelRepresentation") == 1
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value


def _padding_fits(ds: Dataset) -> bool:
    """Whether the padding lies within BitsStored; where not, the bits above must not be masked away."""
    padding = _padding_range(ds)
    stored = int(tags.number(ds, "BitsStored") or 16)
    signed = tags.number(ds, "PixelRepresentation") == 1
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    return padding is None or (low <= padding[0] and padding[1] <= high)


def _header_findings(header: Dataset) -> Iterator[Finding]:
    if not tags.text(header, "FrameOfReferenceUID"):
        yield Finding("NO-FRAME-OF-REFERENCE", "the source names no frame of reference")
    if tags.text(header, "LossyImageCompression") == "01":
        yield Finding("LOSSY-SOURCE", "the source went through lossy compression")
