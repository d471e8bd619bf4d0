"""Names of images and what finding, tagging and removing by them does to the index."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Conflict, Invalid, NotFound
from common.references import Reference, parse, with_tag
from worker.images import names
from worker.images.store import Index, Layer, Record

A, B = "sha256:" + "a" * 64, "sha256:" + "ab" * 32
D = "sha256:" + "d" * 64


@pytest.mark.parametrize(
    ("text", "key", "familiar"),
    [
        ("web", "docker.io/library/web:latest", "web:latest"),
        ("web:2", "docker.io/library/web:2", "web:2"),
        ("docker.io/web", "docker.io/library/web:latest", "web:latest"),
        ("index.docker.io/web", "docker.io/library/web:latest", "web:latest"),
        ("team/web", "docker.io/team/web:latest", "team/web:latest"),
        ("localhost/web", "localhost/web:latest", "localhost/web:latest"),
        ("127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x", "127.0.0.1:5000/a/b:x"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        (f"web@{D}", f"docker.io/library/web@{D}", f"web@{D}"),
        (f"web:2@{D}", f"docker.io/library/web@{D}", f"web@{D}"),
    ],
)
def test_names_have_one_full_form(text: str, key: str, familiar: str) -> None:
    reference = parse(text)
    assert (reference.key, reference.familiar) == (key, familiar)
    assert parse(reference.familiar).key == reference.key


@pytest.mark.parametrize(
    "text",
    ["", "Web", "web:", "web:-x", "web@sha256:12", "web@", "a//b", "/web", "web:a b", "-web",
     "../etc", "a/../b", "web\n", "x" * 300, "ho st/web", "host:port/web"],
)  # fmt: skip
def test_what_is_no_name_is_refused_with_the_name_in_the_message(text: str) -> None:
    with pytest.raises(Invalid, match="image"):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except Invalid:
        return
    assert parse(reference.key).key == reference.key
    assert ".." not in reference.path.split("/")


def test_a_digest_or_an_id_cannot_be_given_as_a_name() -> None:
    with pytest.raises(Invalid):
        with_tag(f"web@{D}")
    with pytest.raises(Invalid):
        with_tag("a" * 64)


def record(image: str) -> Record:
    return Record(id=image, layers=(Layer(blob=D, diff_id=D, blob_size=1),))


def index(**tags: str) -> Index:
    made = Index()
    for name, image in tags.items():
        made = names.added(made, record(image), [parse(name.replace("_", "/"))])
    return made


def test_an_image_is_found_by_name_id_and_unique_prefix() -> None:
    made = index(web=A, other=B)
    made = names.added(made, record(A), [parse("web").with_digest(D)])
    for text in ("web", "web:latest", "docker.io/library/web", f"web@{D}", A, "aaa", "sha256:aaa"):
        assert names.find(made, text).record.id == A
    with pytest.raises(Invalid, match="ambiguous: 2 images"):
        names.find(index(web=A, other="sha256:" + "a" * 63 + "b"), "aa")
    for text in ("nothing", "web:2", "ff", ""):
        with pytest.raises(NotFound, match="No such image"):
            names.find(made, text)


def test_a_tag_moves_to_the_newer_image_and_the_older_dangles() -> None:
    made = names.added(index(web=A), record(B), [parse("web")])
    assert names.find(made, "web").record.id == B
    assert names.names_of(made.tags, A) == []
    assert A in made.images


def test_the_last_name_takes_the_image_with_it() -> None:
    made = index(web=A, web2=A)
    first = names.removed(made, names.find(made, "web"), [], force=False)
    assert (first.untagged, first.deleted) == (["web:latest"], False)
    last = names.removed(first.index, names.find(first.index, "web2"), [], force=False)
    assert last.deleted
    assert last.index == Index()


def test_a_pulled_images_digest_goes_with_its_last_tag() -> None:
    made = names.added(index(web=A), record(A), [parse("web").with_digest(D)])
    removal = names.removed(made, names.find(made, "web"), [], force=False)
    assert removal.untagged == ["web:latest", f"web@{D}"]
    assert removal.index == Index()


def test_an_image_in_use_stays_and_says_by_whom() -> None:
    made = index(web=A)
    by_name = names.find(made, "web")
    with pytest.raises(Conflict, match=r"web:latest.*must force.*container c0ffee"):
        names.removed(made, by_name, ["c0ffee"], force=False)
    forced = names.removed(made, by_name, ["c0ffee"], force=True)
    assert not forced.deleted
    assert A in forced.index.images, "its layers are under a container"
    for force in (False, True):
        with pytest.raises(Conflict, match="cannot be forced"):
            names.removed(made, names.find(made, A), ["c0ffee"], force=force)


def test_an_id_with_names_in_two_repositories_needs_force() -> None:
    made = index(web=A, team_web=A)
    with pytest.raises(Conflict, match="multiple repositories"):
        names.removed(made, names.find(made, A), [], force=False)
    assert names.removed(made, names.find(made, A), [], force=True).index == Index()


def test_needed_blobs_are_all_that_an_image_refers_to() -> None:
    manifest = "sha256:" + "e" * 64
    made = Index(images={A: Record(id=A, layers=record(A).layers, manifests=(manifest,))})
    assert made.blobs == {A, D, manifest}
    assert made.layers == {D}


def test_a_reference_needs_no_tag_when_it_has_a_digest() -> None:
    assert parse(f"web@{D}") == Reference(host="docker.io", path="library/web", digest=D)
