from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk

from node.morphology import Mask, Radius, closed, dilated, eroded, mostly, opened

RADII = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 3, 3), (1, 2, 5), (3, 0, 1), (9, 1, 0)]


def of_itk(mask: Mask, operation: Callable[[sitk.Image], sitk.Image]) -> Mask:
    return np.asarray(sitk.GetArrayFromImage(operation(sitk.GetImageFromArray(mask.astype(np.uint8)))) > 0)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
@pytest.mark.parametrize(
    ("ours", "itk"),
    [
        (dilated, sitk.BinaryDilate),
        (eroded, sitk.BinaryErode),
        (opened, sitk.BinaryMorphologicalOpening),
        (closed, sitk.BinaryMorphologicalClosing),
    ],
)
def test_morphology_is_itk_s(
    ours: Callable[[Mask, Radius], Mask], itk: Callable[..., sitk.Image], share: float, radius: Radius
) -> None:
    mask = np.random.default_rng(7).random((7, 12, 11)) < share
    expected = of_itk(mask, lambda image: itk(image, radius[::-1]))
    np.testing.assert_array_equal(ours(mask, radius), expected)


@pytest.mark.parametrize("slices", [1, 2, 6])
def test_what_mostly_is_above_a_threshold_has_its_median_above_it(slices: int) -> None:
    values = np.random.default_rng(8).normal(size=(slices, 9, 10)).astype(np.float32)
    radius = [1, 1, 1 if slices > 1 else 0]
    median = sitk.GetArrayFromImage(sitk.Median(sitk.GetImageFromArray(values), radius))
    for threshold in (-0.3, 0.0, 0.2):
        np.testing.assert_array_equal(mostly(values > threshold), median > threshold)
