"""Regions: the order of regions against the rule, and distances that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.regions import Region, Regions, distance_km

CITIES = Regions(
    [
        Region("sh", ("CN-SH", "CN-JS"), 31.23, 121.47, spill=("gz", "tk")),
        Region("bj", ("CN-BJ",), 39.90, 116.41),
        Region("gz", ("CN-GD",), 23.13, 113.26),
        Region("tk", ("JP",), 35.68, 139.69),
        Region("nowhere", ("AQ",)),
    ],
    default="bj",
)


@pytest.mark.spec("AL-05")
def test_the_order_is_itself_then_the_spill_list_then_by_distance() -> None:
    """Then regions without coordinates, and those that only nodes name, by name; only those that exist."""
    assert CITIES.order("sh", {"bj", "gz", "sh", "tk", "nowhere", "zz", "aa"}) == (
        *("sh", "gz", "tk"),
        *("bj", "aa", "nowhere", "zz"),
    )
    assert CITIES.order("bj", ["tk", "gz", "sh", "nowhere"]) == ("sh", "gz", "tk", "nowhere")
    assert CITIES.order("nowhere", ["tk", "sh"]) == ("sh", "tk")
    assert CITIES.order("unheard-of", ["tk", "sh", "tk"]) == ("sh", "tk")
    assert CITIES.order("", []) == ()


def test_places_belong_to_regions() -> None:
    """A country or a subdivision to one region."""
    assert CITIES.by_place == {"CN-SH": "sh", "CN-JS": "sh", "CN-BJ": "bj", "CN-GD": "gz", "JP": "tk", "AQ": "nowhere"}
    assert (CITIES.default, len(CITIES.all)) == ("bj", 5)
    assert (Regions().default, Regions().all) == ("", ())


@pytest.mark.parametrize(
    ("one", "other", "km"),
    [
        ((39.90, 116.41), (31.23, 121.47), 1_068),  # Beijing, Shanghai
        ((51.51, -0.13), (40.71, -74.01), 5_570),  # London, New York
        ((0, 179), (0, -179), 222),  # over the date line
        ((90, 0), (-90, 0), 20_015),
        ((0, 0), (0, 180), 20_015),
        ((10, 10), (10, 10), 0),
    ],
)
def test_known_distances(one: tuple[float, float], other: tuple[float, float], km: float) -> None:
    """Within a part in two hundred: the earth is no sphere."""
    assert distance_km(*one, *other) == pytest.approx(km, rel=0.005)


coordinates = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@given(coordinates, coordinates)
def test_a_distance_is_the_same_in_both_directions(one: tuple[float, float], other: tuple[float, float]) -> None:
    """And never more than half around the earth."""
    there, back = distance_km(*one, *other), distance_km(*other, *one)
    assert there == pytest.approx(back, abs=1e-6)
    assert 0 <= there <= 20_016
