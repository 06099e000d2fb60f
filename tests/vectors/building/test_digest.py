import hashlib

from weightwatch.vectors.building.digest import digest


def test_a_digest_is_the_start_of_the_hash_of_sorted_json() -> None:
    whole = hashlib.sha256(b'[{"a": 1, "b": [2, null]}, "x"]').hexdigest()
    assert digest([{"b": [2, None], "a": 1}, "x"]) == whole[:12]
    assert digest([{"a": 1, "b": [2, None]}, "x"], length=64) == whole
    assert digest([{"a": 1, "b": [2, None]}, "y"]) != whole[:12]
