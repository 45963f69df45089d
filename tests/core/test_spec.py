"""What all requests share: equal specs have one name, different ones say how they differ."""

import enum
from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.spec import SPEC_VERSION, Account, Spec, json_value
from batchframe.errors import ParameterError

ACCOUNT = Account(base_url="https://api.openai.com/v1/")
NAN, INF = float("nan"), float("inf")


class Effort(enum.StrEnum):
    LOW = "low"


class OldEffort(str, enum.Enum):  # noqa: UP042 - written so by many
    LOW = "low"


class Level(enum.IntEnum):
    ONE = 1


def a_spec(**changes):
    return Spec(**{"model": "gpt-4o-mini", "account": ACCOUNT, **changes})


# A spec is a value


def test_the_fingerprint_of_a_spec_does_not_change_between_releases():
    spec = a_spec(
        system="Be brief.",
        params={"temperature": 0, "seed": 42},
        account=Account(base_url="https://api.openai.com/v1/", organization="o", project="p"),
    )
    assert spec.to_json() == (
        b'{"version":1,"endpoint":"/v1/chat/completions","model":"gpt-4o-mini",'
        b'"system":"Be brief.","params":{"seed":42,"temperature":0},'
        b'"account":{"base_url":"https://api.openai.com/v1/","organization":"o","project":"p"}}'
    )
    assert spec.fingerprint == "c6a6588758f7b97b4eaa1919a3ff1d1e"


def test_the_fingerprint_is_128_bits_in_hex():
    assert len(bytes.fromhex(a_spec().fingerprint)) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"version": SPEC_VERSION + 1},
        {"endpoint": "/v1/responses"},
        {"model": "gpt-4o"},
        {"system": ""},
        {"system": "Be brief."},
        {"params": {"seed": 1}},
        {"account": Account(base_url="https://eu.api.openai.com/v1/")},
        {"account": Account(base_url=ACCOUNT.base_url, organization="o")},
        {"account": Account(base_url=ACCOUNT.base_url, project="p")},
    ],
    ids=str,
)
def test_every_part_of_a_spec_is_in_its_fingerprint_and_in_its_differences(change):
    assert a_spec() != a_spec(**change)
    assert a_spec().fingerprint != a_spec(**change).fingerprint
    (only,) = a_spec().differences(a_spec(**change))
    part = next(iter(change))
    assert only.startswith({"account": "", "params": "seed"}.get(part, part))


def test_the_order_in_which_parameters_are_named_does_not_matter():
    one = a_spec(params={"temperature": 0, "seed": 42})
    other = a_spec(params={"seed": 42, "temperature": 0})
    assert one == other
    assert not one != other  # noqa: SIM202 - an operator of its own
    assert hash(one) == hash(other)
    assert one.fingerprint == other.fingerprint
    assert one.differences(other) == []


def test_the_order_within_a_parameter_does_not_matter_and_is_kept():
    one = a_spec(params={"x": [{"a": {"b": 1, "c": 2}, "d": 3}], "y": 4})
    other = a_spec(params={"y": 4, "x": [{"d": 3, "a": {"c": 2, "b": 1}}]})
    assert one == other
    assert hash(one) == hash(other)
    assert one.differences(other) == []
    assert b'"x":[{"a":{"b":1,"c":2},"d":3}]' in one.to_json()
    assert b'"x":[{"d":3,"a":{"c":2,"b":1}}]' in other.to_json()
    assert a_spec(params={"x": [1, 2]}) != a_spec(params={"x": [2, 1]})


def test_the_order_of_the_properties_of_a_schema_matters_because_models_answer_in_it():
    one = a_spec(params={"tools": [{"properties": {"a": {}, "b": {}}}]})
    other = a_spec(params={"tools": [{"properties": {"b": {}, "a": {}}}]})
    assert one != other
    assert one.fingerprint != other.fingerprint
    assert one.differences(other) == [
        'the order of tools[0].properties: ["b","a"] there, ["a","b"] here',
    ]


@pytest.mark.parametrize(("one", "other"), [(0, 0.0), (1, True), (0, False), (0.0, -0.0)])
def test_values_that_are_written_differently_make_different_specs(one, other):
    ours, theirs = a_spec(params={"x": one}), a_spec(params={"x": other})
    assert ours != theirs
    assert ours.fingerprint != theirs.fingerprint
    assert len(ours.differences(theirs)) == 1


def test_a_spec_is_no_equal_of_other_things():
    assert a_spec() != a_spec().to_json()
    assert not a_spec() == a_spec().to_json()  # noqa: SIM201 - an operator of its own


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1), JSON, max_size=4), st.none() | st.text())
def test_a_spec_reads_back_as_it_was_written(params, system):
    spec = a_spec(params=params, system=system)
    there = Spec.from_json(spec.to_json())
    assert there == spec
    assert there.to_json() == spec.to_json()
    assert there.fingerprint == spec.fingerprint


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"model":1,"account":{}}', b"\xff", b'{"model":"\xff"}']
)
def test_what_is_no_spec_is_refused(data):
    with pytest.raises(msgspec.DecodeError):
        Spec.from_json(data)


# Differences


def test_differences_name_each_part_with_both_values():
    ours = a_spec(system="Be brief.", params={"temperature": 0, "seed": 42})
    theirs = a_spec(
        model="gpt-4o",
        params={"temperature": 1},
        account=Account(base_url="https://eu.api.openai.com/v1/", project="p"),
    )
    assert ours.differences(theirs) == [
        'base_url: "https://eu.api.openai.com/v1/" there, "https://api.openai.com/v1/" here',
        'model: "gpt-4o" there, "gpt-4o-mini" here',
        'project: "p" there, null here',
        "seed: not set there, 42 here",
        'system: null there, "Be brief." here',
        "temperature: 1 there, 0 here",
    ]


def test_a_parameter_that_is_null_is_not_the_same_as_one_that_is_not_set():
    (line,) = a_spec(params={"stop": None}).differences(a_spec())
    assert line == "stop: not set there, null here"


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "x.a.c: 2 there, 3 here"),
        ({"a": {"b": 1}}, {"a": {}}, "x.a.b: 1 there, not set here"),
        ({"a": None}, {"b": None}, "x.a: null there, not set here"),
        ([1, [2, 3]], [1, [2, 4]], "x[1][1]: 3 there, 4 here"),
        ([1, 2], [1], "x: [1,2] there, [1] here"),
        ({"a": 1}, [1], 'x: {"a":1} there, [1] here'),
        ({"a": 1}, {"a": 1.0}, "x.a: 1 there, 1.0 here"),
    ],
)
def test_a_difference_within_a_part_is_told_by_its_place(theirs, ours, expected):
    assert a_spec(params={"x": ours}).differences(a_spec(params={"x": theirs})) == [expected]


def test_long_values_are_shown_cut():
    (line,) = a_spec(system="x" * 100).differences(a_spec(system="x" * 99 + "y"))
    shown = '"' + "x" * 76 + "..."
    assert line == f"system: {shown} there, {shown} here"


# Parameters


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ("text", "text"),
        ("", ""),
        (7, 7),
        (2**70, 2**70),
        (0.5, 0.5),
        (Fraction(1, 2), 0.5),
        (Level.ONE, 1),
        (Effort.LOW, "low"),
        (OldEffort.LOW, "low"),
        ([1, "a"], [1, "a"]),
        ((1, (2,)), [1, [2]]),
        ({"a": {"b": [None]}}, {"a": {"b": [None]}}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (MappingProxyType({"a": (1,)}), {"a": [1]}),
        (np.int64(3), 3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.5), 0.5),
        (np.float64(0.25), 0.25),
        (np.bool(True), True),
        (np.str_("text"), "text"),
        (np.array(4), 4),
        ({"a": [np.float16(2)]}, {"a": [2.0]}),
    ],
    ids=repr,
)
def test_parameters_become_plain_json(value, expected):
    plain = json_value(value, "x")
    assert plain == expected
    assert type(plain) is type(expected)
    assert msgspec.json.decode(msgspec.json.encode(plain)) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (NAN, "x is nan, which JSON cannot hold."),
        (INF, "x is inf, which JSON cannot hold."),
        (-INF, "x is -inf, which JSON cannot hold."),
        (np.float32("nan"), "x is nan, which JSON cannot hold."),
        (np.array(INF), "x is inf, which JSON cannot hold."),
        ({"a": [1, {"b": NAN}]}, "x.a[1].b is nan, which JSON cannot hold."),
        ((0, [{}, NAN]), "x[1][1] is nan, which JSON cannot hold."),
        ({1: "a"}, "x has the key 1: JSON keys are strings."),
        ({"a": {None: "a"}}, "x.a has the key None: JSON keys are strings."),
        ({1, 2}, "x is a set, which JSON cannot hold."),
        (b"text", "x is a bytes, which JSON cannot hold."),
        ({"a": [b""]}, "x.a[0] is a bytes, which JSON cannot hold."),
        (np.array([1, 2]), "x is a ndarray, which JSON cannot hold."),
        (Decimal("0.5"), "x is a Decimal, which JSON cannot hold."),
        (1j, "x is a complex, which JSON cannot hold."),
        # Its own repr holds an address, by which no other process would know the test.
        pytest.param(object(), "x is a object, which JSON cannot hold.", id="object()"),
        (int, "x is a type, which JSON cannot hold."),
        ("cut \ud83d", "x holds half a character (a lone surrogate), which cannot be sent."),
        ({"cut \ud83d": 1}, "a key of x holds half a character"),
    ],
    ids=ascii,
)
def test_what_json_cannot_hold_is_refused_with_its_place(value, message):
    with pytest.raises(ParameterError) as caught:
        json_value(value, "x")
    assert str(caught.value).startswith(message)


def test_parameters_are_copied_so_that_a_later_change_does_not_reach_them():
    mine = {"stop": ["a"]}
    plain = json_value(mine, "x")
    mine["stop"].append("b")
    assert plain == {"stop": ["a"]}


@given(JSON)
def test_plain_json_stays_as_it_is(value):
    assert json_value(value, "x") == value
