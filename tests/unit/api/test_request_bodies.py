"""Request bodies and parameters: what is taken, what is refused, and in which words."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from common.errors import Invalid, NotImplementedHere
from common.model.container import ContainerCreate
from common.model.node import NodeSpec
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


def test_a_wrong_choice_names_the_right_ones() -> None:
    with pytest.raises(Invalid, match="Availability: invalid enum value 'off'; use active or paus"):
        body.convert({"Availability": "off"}, NodeSpec)


def test_a_body_of_another_shape_is_refused() -> None:
    with pytest.raises(Invalid, match="the request's body: expected object, got array"):
        body.convert([], ServiceSpec)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "has no body"),
        (b"{garbage", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        body.parse(raw, ServiceSpec)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_a_number_that_cannot_be_stored_is_refused(number: int) -> None:
    limits = {"TaskTemplate": {"Resources": {"Limits": {"MemoryBytes": number}}}}
    with pytest.raises(Invalid, match=r"Limits\.MemoryBytes = .* is out of range"):
        body.convert(limits, ServiceSpec)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_of_another_type_is_refused(kind: str) -> None:
    """A page in a browser can send those to a port of the machine, without asking."""
    sent = make_mocked_request("POST", "/x", headers={"Content-Type": kind})
    with pytest.raises(Invalid, match=r"Content-Type .* must be 'application/json'"):
        await body.read(sent, ServiceSpec)


def test_an_unknown_field_that_asks_for_something_is_refused() -> None:
    with pytest.raises(NotImplementedHere, match=r"HostConfig\.VolumeDriver = .*leave it out"):
        body.convert({"Image": "a", "HostConfig": {"VolumeDriver": "x"}}, ContainerCreate)


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


@pytest.mark.parametrize("query", ["", "size=0", "size=false", "other=1"])
def test_a_parameter_that_asks_for_nothing_is_passed_over(query: str) -> None:
    body.refuse(request(query), "size")


def test_a_parameter_that_we_do_not_honour_is_refused() -> None:
    with pytest.raises(NotImplementedHere, match=r"size = .1. is not supported.*leave it out"):
        body.refuse(request("size=1"), "signal", "size")
