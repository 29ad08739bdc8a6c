"""cluster/market/tags.py: Ray's tags of a node fit into less than 128 characters."""

import operator

import pytest
from ray.autoscaler import tags as ray

from cluster.market import tags

HASH = "0123456789abcdefghijklmnopqrstuv0123456789abcdefghij"  # base32hex of a SHA-256, as Ray writes them


def full(kind: str, **more: str) -> dict[str, str]:
    cluster = "c" * tags.NAME
    return {
        ray.TAG_RAY_NODE_KIND: kind,
        ray.TAG_RAY_NODE_NAME: f"ray-{cluster}-{kind}",
        ray.TAG_RAY_USER_NODE_TYPE: "t" * tags.NAME,
        ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE,
        ray.TAG_RAY_LAUNCH_CONFIG: HASH,
        tags.SLOT: "99",
        tags.NONCE: "0123456789ab",
        **more,
    }


@pytest.mark.parametrize(
    "all_tags",
    [
        full("head", **{ray.TAG_RAY_RUNTIME_CONFIG: HASH, ray.TAG_RAY_FILE_MOUNTS_CONTENTS: HASH}),
        full("worker", **{ray.TAG_RAY_LAUNCH_REQUEST: "12345678-1234-1234-1234-123456789abc"}),
    ],
)
def test_the_longest_names_fit_and_come_back(all_tags):
    label = tags.encode("c" * tags.NAME, all_tags)
    assert len(label) < 128
    cluster, came = tags.decode(label)
    if all_tags[ray.TAG_RAY_NODE_KIND] == "worker":  # the autoscaler alone uses a worker's launch hash
        del all_tags[ray.TAG_RAY_LAUNCH_CONFIG]
    assert cluster == "c" * tags.NAME and came == all_tags
    assert tags.encode(cluster, came) == label


def test_a_hash_is_known_by_its_beginning():
    """Ray relaunches a head whose launch hash differs: commands.py, _should_create_new_head."""
    came = tags.decode(tags.encode("c", full("head")))[1][ray.TAG_RAY_LAUNCH_CONFIG]
    other = "z" + HASH[1:]
    for same in (operator.eq(HASH, came), operator.eq(came, HASH), operator.ne(other, came), operator.ne(came, other)):
        assert same
    for same in (operator.ne(HASH, came), operator.ne(came, HASH), operator.eq(other, came), came == "", came == None):  # noqa: E711
        assert not same
    assert (
        came == tags.Hash(came) and tags.encode("c", {ray.TAG_RAY_LAUNCH_CONFIG: came}) == f"shoestring/c;l={HASH[:9]}"
    )


def test_a_label_is_written_like_this():
    some = {ray.TAG_RAY_NODE_KIND: "worker", ray.TAG_RAY_NODE_STATUS: ray.STATUS_SETTING_UP, tags.SLOT: "3"}
    assert tags.encode("c1", some) == "shoestring/c1;k=w;m=3;s=g"


def test_what_a_person_adds_to_a_label_is_left_out():
    assert tags.decode("shoestring/c1;m=3;hello;y=z") == ("c1", {tags.SLOT: "3"})


@pytest.mark.parametrize("name", ["", "a;b", "a/b", "a=b", "é", "x" * 25])
def test_names_that_would_break_a_label_are_refused(name):
    with pytest.raises(ValueError, match="cluster_name"):
        tags.check_name("cluster_name", name)
