import pytest
from pydantic import ValidationError

from config.settings import Settings


def settings(**fallback_of):
    names = ("pacs", "second", "third")
    towards = {"kind": "folder", "path": "/srv"}
    return Settings.model_validate(
        {"destinations": [{"name": each, **towards, "fallback": fallback_of.get(each, "")} for each in names]}
    )


def test_without_a_fallback_every_job_goes_everywhere():
    assert settings().first_destinations == ("pacs", "second", "third")


def test_a_fallback_gets_no_job_of_its_own():
    assert settings(pacs="third", second="third").first_destinations == ("pacs", "second")


@pytest.mark.parametrize(
    "wrong", [{"pacs": "nobody"}, {"pacs": "pacs"}, {"pacs": "second", "second": "third"}]
)
def test_a_fallback_is_a_destination_that_is_there_and_has_none_itself(wrong):
    with pytest.raises(ValidationError, match="no fallback of its own"):
        settings(**wrong)
