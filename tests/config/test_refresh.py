import pytest
from pydantic import ValidationError

from config.refresh import RefreshSettings


def test_it_is_off_by_default():
    assert RefreshSettings().schedule == ""


def test_a_schedule_is_kept_in_one_spelling():
    assert RefreshSettings(schedule=" 0 2  * * sat ", cases="pairs").schedule == "0 2 * * sat"


@pytest.mark.parametrize("text", ["hourly", "0 2 * *", "0 2 * * 6", "61 2 * * *", "0 2 * * caturday"])
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(ValidationError, match="schedule"):
        RefreshSettings(schedule=text, cases="pairs")


def test_a_schedule_needs_cases():
    with pytest.raises(ValidationError, match="train prepare"):
        RefreshSettings(schedule="0 2 1 * *")
