"""Request bodies and parameters: what is taken, what is refused, and in which words."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from common.errors import Invalid, NotImplementedHere
from common.model.container import ContainerCreate
from common.model.service import ServiceSpec
from node.api import body


def request(query: str) -> web.Request:
    return make_mocked_request("GET", f"/x?{query}")


def test_null_is_not_given() -> None:
    spec = body.convert(
        {"Name": "web", "Labels": None, "TaskTemplate": {"Networks": None}}, ServiceSpec
    )
    assert (spec.name, spec.labels, spec.task_template.networks) == ("web", {}, ())


def test_a_wrong_type_names_its_place() -> None:
    with pytest.raises(Invalid, match=r"TaskTemplate.ContainerSpec.Image"):
        body.convert({"TaskTemplate": {"ContainerSpec": {"Image": 3}}}, ServiceSpec)


def test_an_unknown_field_that_asks_for_something_is_refused() -> None:
    with pytest.raises(NotImplementedHere, match=r"HostConfig\.Devices = .*leave it out"):
        body.convert(
            {"Image": "a", "HostConfig": {"Devices": [{"PathOnHost": "/x"}]}}, ContainerCreate
        )


def test_an_unknown_field_inside_a_list_is_found() -> None:
    mounts = [{"Type": "bind", "Target": "/x", "BindOptions": {"Colour": "red"}}]
    with pytest.raises(NotImplementedHere, match=r"HostConfig\.Mounts\[0\]\.BindOptions\.Colour"):
        body.convert({"HostConfig": {"Mounts": mounts}}, ContainerCreate)


@pytest.mark.parametrize("nothing", [None, "", 0, -1, False, [], {}, [0, 0], "default", {"a": ""}])
def test_an_unknown_field_that_holds_nothing_is_passed_over(nothing: object) -> None:
    """Clients send their whole structs, most of them empty."""
    spec = body.convert({"Image": "a", "HostConfig": {"BlkioThing": nothing}}, ContainerCreate)
    assert spec.image == "a"


def test_filters_in_both_forms() -> None:
    assert body.filters(request('filters={"name":["a","b"]}')) == {"name": ["a", "b"]}
    assert body.filters(request('filters={"name":{"a":true,"b":false}}')) == {"name": ["a"]}
    assert body.filters(request("")) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"name":3}'])
def test_filters_that_are_none(text: str) -> None:
    with pytest.raises(Invalid, match="filters"):
        body.filters(request(f"filters={text}"))


@pytest.mark.parametrize(
    ("text", "value"), [("", False), ("0", False), ("false", False), ("1", True), ("True", True)]
)
def test_flags_as_docker_reads_them(text: str, value: bool) -> None:
    assert body.flag(request(f"all={text}"), "all") is value


def test_times_keep_their_nanoseconds() -> None:
    assert body.time_ns(request("since=1714561200.000000001"), "since") == 1714561200000000001
    assert body.time_ns(request("since=0"), "since") == 0
    with pytest.raises(Invalid, match="since = 'soon'"):
        body.time_ns(request("since=soon"), "since")


def test_an_update_needs_a_version() -> None:
    assert body.version(request("version=7")) == 7
    with pytest.raises(Invalid, match=r"Version\.Index"):
        body.version(request(""))
    with pytest.raises(Invalid, match="version = 'x'"):
        body.version(request("version=x"))
